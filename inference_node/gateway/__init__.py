"""One address before many nodes: the configuration of Envoy, which does the work.

envoy.yaml      the template: what Envoy does with a call, and why
config.py       what differs from place to place, checked
certificates.py TLS to callers and to nodes, read once or watched
render.py       all of it, as text
transcoding.py  the protos, for callers who send JSON
known_fields.py what of their JSON is refused that the transcoder would drop (known_fields.lua)
program.py      Envoy itself, where its wheel is installed
"""

"""The wire: messages in, messages out. Nothing here decides what is served, or when.

servicers.py    one short method per RPC of InferenceService
catalog.py      and of CatalogService, read from the store
adapters.py     and of AdapterService, given to the engine as orders
pool_watch.py   what changes on the node, told to whoever watches
tally.py        what was answered so far
convert.py      messages to the engine's words; every bound on input
answers.py      the engine's words to messages
published.py    and what the store's log says
residents.py    and what is on the node
mailbox.py      from the engine's thread to a call
request_ids.py  for requests that bring none
status.py       the one table from error to status
limits.py       what one caller may take of the node
quotas.py       what one tenant may
turnstile.py    how many calls there may be at once
server.py       serve, watch the engine's health, drain
door.py         one address and the services behind it
auth.py         who calls, and what they may
engine_port.py  what this room needs of an engine
"""

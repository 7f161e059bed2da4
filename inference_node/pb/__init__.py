"""The wire's generated messages and stubs: `make protos` writes them, nobody edits them.

Only `rpc/` and `client.py` may import from here. `protos/lorapool/v1/` is the source.
"""

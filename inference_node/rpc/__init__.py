"""The wire: messages in, messages out. Nothing here decides what is served, or when.

servicers.py    one short method per RPC of InferenceService
catalog.py      and of CatalogService, read from the store
convert.py      messages to the engine's words; every bound on input
answers.py      the engine's words to messages
published.py    and what the store's log says
mailbox.py      from the engine's thread to a call
status.py       the one table from error to status
limits.py       what one caller may take of the node
server.py       listen, health, drain
engine_port.py  what this room needs of an engine
"""

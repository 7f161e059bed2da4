"""The operators. Each folder: its contract in `__init__`, the oracle in `reference`."""

import logging

# bitsandbytes looks for an optional hub kernel when imported and warns that it is absent; its own
# kernel is the one that serves here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

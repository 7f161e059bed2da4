"""What a client has seen of each adapter, so that it never sees anything older."""

from __future__ import annotations

import threading
from collections import OrderedDict

from inference_node.request import Served

REMEMBERED = 65_536
"""Adapters; of more, those that were asked for longest ago are forgotten."""
_DEFAULT_TENANT = "default"


class Generations:
    """The highest generation that answered, by owner and name. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()

    def at_least(self, tenant: str, adapter: str, asked: int) -> int:
        """The `min_generation` of a request under `adapter`; what names its version needs none."""
        if not adapter or "@" in adapter:
            return asked
        with self._lock:
            return max(asked, self._seen.get((tenant or _DEFAULT_TENANT, adapter), 0))

    def note(self, asked: str, served: Served) -> None:
        """`served` answered a request under the reference `asked`."""
        if not served.adapter or "@" in asked:
            return
        key = (served.tenant, served.adapter)
        with self._lock:
            self._seen[key] = max(served.generation, self._seen.get(key, 0))
            self._seen.move_to_end(key)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

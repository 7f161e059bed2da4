"""Verified adapters on the host, so that coming back to the device costs a copy and no fetch."""

from __future__ import annotations

import threading

from inference_node.adapters.recency import Recency
from inference_node.adapters.versions import VersionKey
from inference_node.adapters.weights import HostAdapter


class HostTier:
    """Within a byte budget; used once goes before used again (recency.py). Safe for threads."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: dict[VersionKey, HostAdapter] = {}
        self._recency: Recency[VersionKey] = Recency(budget)
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: VersionKey) -> HostAdapter | None:
        """Asked for again after it was put: that is its second use."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._recency.used_again(key)
            return found

    def put(self, key: VersionKey, host: HostAdapter) -> None:
        with self._lock:
            if key in self._kept or host.bytes > self._budget:
                return
            while self.bytes + host.bytes > self._budget:
                self._drop(next(iter(self._recency)))
            self._kept[key] = host
            self._recency.add(key, host.bytes)
            self.bytes += host.bytes

    def _drop(self, key: VersionKey) -> None:
        self.bytes -= self._kept.pop(key).bytes
        self._recency.remove(key)

"""Verified adapters on the host, so that coming back to the device costs a copy and no fetch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from inference_node.adapters.recency import Recency
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.adapters.weights import HostAdapter


@dataclass(slots=True)
class HostCopy:
    """A version on the host."""

    entry: Entry
    """What it was first asked for as."""
    host: HostAdapter
    used_at: float


class HostTier:
    """Within a byte budget; used once goes before used again (recency.py). Safe for threads."""

    def __init__(self, budget: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._clock = clock
        self._kept: dict[VersionKey, HostCopy] = {}
        self._recency: Recency[VersionKey] = Recency(budget)
        self._lock = threading.Lock()
        self.bytes = 0
        self.evictions = 0

    def get(self, key: VersionKey) -> HostAdapter | None:
        """Asked for again after it was put: that is its second use."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._recency.used_again(key)
            found.used_at = self._clock()
            return found.host

    def put(self, entry: Entry, host: HostAdapter) -> None:
        key = entry.key
        with self._lock:
            if key in self._kept or host.bytes > self.budget:
                return
            while self.bytes + host.bytes > self.budget:
                self._drop(next(iter(self._recency)))
            self._kept[key] = HostCopy(entry, host, self._clock())
            self._recency.add(key, host.bytes)
            self.bytes += host.bytes

    def copies(self) -> list[HostCopy]:
        """What is kept now."""
        with self._lock:
            return list(self._kept.values())

    def check_integrity(self) -> None:
        """Raises AssertionError when the bytes do not add up or are over the budget."""
        with self._lock:
            assert self.bytes == sum(copy.host.bytes for copy in self._kept.values())
            assert self.bytes <= self.budget
            assert set(self._recency) == self._kept.keys()
            self._recency.check_integrity()

    def _drop(self, key: VersionKey) -> None:
        self.evictions += 1
        self.bytes -= self._kept.pop(key).host.bytes
        self._recency.remove(key)

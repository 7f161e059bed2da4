"""How many records of the store were not to be believed."""

from __future__ import annotations

import threading


class RefusedRecords:
    """Counted by the threads that read the store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0

    def note(self) -> None:
        with self._lock:
            self._number += 1

    def read(self) -> int:
        with self._lock:
            return self._number

"""An ObjectStore that counts what goes through it."""

from __future__ import annotations

import threading
from collections import Counter

from adapter_store.objects import ListPage, ObjectHead, ObjectStore


class MeteredStore:
    """Passes every call on and counts it; safe for several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        with self._lock:
            return self._counts.total()

    @property
    def counts(self) -> Counter[str]:
        """Requests by the method that sent them."""
        with self._lock:
            return self._counts.copy()

    def get(self, key: str) -> bytes:
        self._count("get")
        return self._store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        self._count("put_new")
        self._store.put_new(key, body)

    def head(self, key: str) -> ObjectHead:
        self._count("head")
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        self._count("list")
        return self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def delete(self, key: str) -> None:
        self._count("delete")
        self._store.delete(key)

    def _count(self, method: str) -> None:
        with self._lock:
            self._counts[method] += 1

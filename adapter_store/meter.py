"""An ObjectStore that counts what goes through it."""

from __future__ import annotations

import threading

from adapter_store.objects import ListPage, ObjectHead, ObjectStore


class MeteredStore:
    """Passes every call on and counts it; safe for several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._requests = 0

    @property
    def requests(self) -> int:
        with self._lock:
            return self._requests

    def get(self, key: str) -> bytes:
        self._count()
        return self._store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        self._count()
        self._store.put_new(key, body)

    def head(self, key: str) -> ObjectHead:
        self._count()
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        self._count()
        return self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def delete(self, key: str) -> None:
        self._count()
        self._store.delete(key)

    def _count(self) -> None:
        with self._lock:
            self._requests += 1

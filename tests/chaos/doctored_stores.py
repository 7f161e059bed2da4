"""A real store with one promise broken each, for a conformance check to find."""

from __future__ import annotations

import threading
from dataclasses import replace

from adapter_store.errors import AlreadyExists
from adapter_store.objects import ListPage, ObjectHead
from adapter_store.s3 import S3Store


class Sound:
    """Passes everything on: what the doctored ones change."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._bodies: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        self._store.put_new(key, body)

    def head(self, key: str) -> ObjectHead:
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def accepts_damaged(self, key: str) -> bool:
        return self._store.accepts_damaged(key)


class RefusesTooLate(Sound):
    """Says that the key is taken, after it has overwritten it."""

    def put_new(self, key: str, body: bytes) -> None:
        try:
            self._store.put_new(key, body)
        except AlreadyExists:
            self._store.delete(key)
            self._store.put_new(key, body)
            raise


class LooksThenWrites(Sound):
    """Checks and writes in two steps: racers that look together all win."""

    def __init__(self, store: S3Store, racers: int) -> None:
        super().__init__(store)
        self._together = threading.Barrier(racers)
        self._one = threading.Lock()

    def put_new(self, key: str, body: bytes) -> None:
        if not body.startswith(b"racer"):
            return super().put_new(key, body)
        self._together.wait()
        with self._one:
            self._store.delete(key)
            self._store.put_new(key, body)


class ListsLate(Sound):
    """A listing does not show what was just put."""

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        page = super().list(prefix, delimiter=delimiter, limit=limit, token=token)
        return replace(page, heads=page.heads[:-1])


class ReadsLate(Sound):
    """A read answers with what was there before."""

    def get(self, key: str) -> bytes:
        return b""


class MisreportsDigests(Sound):
    """HEAD tells a sha256 that is not the object's."""

    def head(self, key: str) -> ObjectHead:
        return replace(super().head(key), sha256="0" * 64)


class TakesDamagedBodies(Sound):
    """A body that does not match the checksum sent with it is stored."""

    def accepts_damaged(self, key: str) -> bool:
        return True

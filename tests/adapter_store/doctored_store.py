"""Six stores that break one promise each, on top of any store that keeps them all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from adapter_store.check import RACERS
from adapter_store.errors import AlreadyExists, NotFound
from adapter_store.objects import Damage, ListPage, ObjectHead, ObjectStore
from adapter_store.s3 import S3Store


class Doctored:
    """Keeps every promise of the store below it."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def get(self, key: str) -> bytes:
        return self.store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        self.store.put_new(key, body)

    def head(self, key: str) -> ObjectHead:
        return self.store.head(key)

    def list(self, prefix: str, **options: Any) -> ListPage:
        return self.store.list(prefix, **options)

    def delete(self, key: str) -> None:
        self.store.delete(key)

    def accepts_damaged(self, key: str, damage: Damage) -> bool:
        return isinstance(self.store, S3Store) and self.store.accepts_damaged(key, damage)

    def put_unheard(self, key: str, body: bytes) -> None:
        if isinstance(self.store, S3Store):
            self.store.put_unheard(key, body)
        else:
            self.store.put_new(key, body)

    def overwrite(self, key: str, body: bytes) -> None:
        while True:
            self.store.delete(key)
            try:
                return self.store.put_new(key, body)
            except AlreadyExists:
                continue


class StripsTheCondition(Doctored):
    """On S3 the header never arrives; elsewhere the same is done by hand."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        if isinstance(store, S3Store):
            _strip(store, "If-None-Match")

    def put_new(self, key: str, body: bytes) -> None:
        if isinstance(self.store, S3Store):
            self.store.put_new(key, body)
        else:
            self.overwrite(key, body)


class ListsStale(Doctored):
    """A listing says what it would have said when it was last asked for."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self._before: dict[str, ListPage] = {}

    def list(self, prefix: str, **options: Any) -> ListPage:
        page = self.store.list(prefix, **options)
        old = self._before.get(prefix, ListPage((), (), None))
        self._before[prefix] = page
        return old


class ReadsStale(Doctored):
    """The first read after a write knows nothing of it."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self._fresh: set[str] = set()

    def put_new(self, key: str, body: bytes) -> None:
        self.store.put_new(key, body)
        self._fresh.add(key)

    def get(self, key: str) -> bytes:
        if key in self._fresh:
            self._fresh.discard(key)
            raise NotFound(f"{key} does not exist")
        return self.store.get(key)


class AcceptsWrongChecksums(Doctored):
    """On S3 the checksum never arrives."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        if isinstance(store, S3Store):
            _strip(store, "x-amz-checksum-sha256", "x-amz-sdk-checksum-algorithm", "Content-MD5")

    def accepts_damaged(self, key: str, damage: Damage) -> bool:
        if isinstance(self.store, S3Store):
            return self.store.accepts_damaged(key, damage)
        return damage is Damage.TRUNCATED or damage is Damage.WRONG_SHA256


class OverwritesAfterRefusing(Doctored):
    def put_new(self, key: str, body: bytes) -> None:
        try:
            self.store.put_new(key, body)
        except AlreadyExists:
            self.overwrite(key, body)
            raise


class HasTwoWinners(Doctored):
    """Racing creators all look before any of them writes; one at a time it behaves."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self._meetings: dict[str, threading.Barrier] = {}

    def put_new(self, key: str, body: bytes) -> None:
        if not body.startswith(b"racer"):
            return self.store.put_new(key, body)
        with self._lock:
            meeting = self._meetings.setdefault(key, threading.Barrier(RACERS))
        meeting.wait()
        return self.overwrite(key, body)


DOCTORED: tuple[tuple[Callable[[ObjectStore], Doctored], str], ...] = (
    (StripsTheCondition, "ignores If-None-Match"),
    (ListsStale, "not listed at once"),
    (ReadsStale, "not readable as written at once"),
    (AcceptsWrongChecksums, "accepts a body that does not match its sha256"),
    (OverwritesAfterRefusing, "a refused conditional PUT changed the object"),
    (HasTwoWinners, "of 4 racing If-None-Match"),
)


def _strip(store: S3Store, *names: str) -> None:
    def strip(request: Any, **_: object) -> None:
        for name in names:
            del request.headers[name]

    store._writer.meta.events.register("before-sign.s3.PutObject", strip)

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from adapter_store import layout
from adapter_store.check import RACERS, check_store
from adapter_store.errors import StoreUnavailable, StoreUnfit
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage, ObjectHead
from adapter_store.s3 import S3Store


def test_a_sound_store_passes_and_keeps_no_probes() -> None:
    store = MemoryStore()
    check_store(store)
    assert store.list("").keys == ()


@pytest.mark.services
def test_a_real_s3_passes_within_three_seconds(s3_store: S3Store) -> None:
    started = time.monotonic()
    check_store(s3_store)
    assert time.monotonic() - started < 3.5
    assert s3_store.list(layout.checks_prefix()).keys == ()


class IgnoresTheCondition(MemoryStore):
    def put_new(self, key: str, body: bytes) -> None:
        self.delete(key)
        super().put_new(key, body)


class RefusesAfterOverwriting(MemoryStore):
    def put_new(self, key: str, body: bytes) -> None:
        taken = key in self._bodies
        self.delete(key)
        super().put_new(key, body)
        if taken:
            super().put_new(key, body)


class LooksThenWrites(MemoryStore):
    """Every racer looks before any of them writes; one at a time it behaves."""

    def __init__(self) -> None:
        super().__init__()
        self._together = threading.Barrier(RACERS)

    def put_new(self, key: str, body: bytes) -> None:
        taken = key in self._bodies
        if body.startswith(b"racer"):
            self._together.wait()
        if not taken:
            self.delete(key)
        super().put_new(key, body)


class ListsLate(MemoryStore):
    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return ListPage((), (), None)


class ReadsOldBytes(MemoryStore):
    def get(self, key: str) -> bytes:
        return b"before"


class MisreportsDigests(MemoryStore):
    def head(self, key: str) -> ObjectHead:
        head = super().head(key)
        return ObjectHead(key, head.size, "0" * 64, head.modified)


class TakesDamagedBodies(MemoryStore):
    def accepts_damaged(self, key: str) -> bool:
        return True


@pytest.mark.parametrize(
    ("doctored", "fault"),
    [
        (IgnoresTheCondition, "ignores If-None-Match"),
        (RefusesAfterOverwriting, "changed the object"),
        (LooksThenWrites, "4 of 4 racing"),
        (ListsLate, "not listed at once"),
        (ReadsOldBytes, "not readable as written"),
        (MisreportsDigests, "misreports"),
        (TakesDamagedBodies, "does not match its sha256"),
    ],
)
def test_a_store_that_breaks_a_promise_is_refused_by_its_fault(
    doctored: Callable[[], MemoryStore], fault: str
) -> None:
    with pytest.raises(StoreUnfit, match=fault):
        check_store(doctored())


class NeverAnswersARace(MemoryStore):
    def put_new(self, key: str, body: bytes) -> None:
        if body.startswith(b"racer"):
            raise StoreUnavailable("away")
        super().put_new(key, body)


def test_a_store_that_goes_away_is_not_called_unfit() -> None:
    with pytest.raises(StoreUnavailable, match="away"):
        check_store(NeverAnswersARace())

"""Taking an adapter back while whoever took it is still writing."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from adapter_store.draft import Author
from adapter_store.errors import Conflict, IntegrityError, NotFound
from adapter_store.intent import Plan
from adapter_store.layout import CHUNK_BYTES, log_key, plan_key
from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.reclaim import reclaim
from adapter_store.record import Record, RecordKind
from adapter_store.upload import condemned_keys
from tests.adapter_store.publishing import (
    ADAPTER,
    REF,
    TENANT,
    SteppedClock,
    adapter,
    keys,
    publisher,
)
from tests.adapter_store.signed import Trust, forged, plant, sign_and_publish, signer, trusted

_txids = count(1)


def take_back(store: ObjectStore, **options: bool) -> Record | None:
    clock = SteppedClock()
    return reclaim(
        store,
        tenant=TENANT,
        adapter=ADAPTER,
        signer=signer(),
        verifier=Trust(trusted()),
        author=lambda: Author(f"{next(_txids):032x}", 1, "alice", ""),
        clock=clock,
        sleep=clock.sleep,
        **options,
    )


class Contested(MemoryStore):
    """Somebody writes garbage into each slot just before the honest record gets there."""

    times = 0

    def put_new(self, key: str, body: bytes) -> None:
        if self.times and "/log/" in key and b'"kind":"rollback"' in body:
            self.times -= 1
            super().put_new(key, b"garbage")
        super().put_new(key, body)


@pytest.fixture
def store() -> Contested:
    store = Contested()
    sign_and_publish(store, 1)
    sign_and_publish(store, 2)
    return store


def test_nothing_of_the_strangers_is_adopted(store: Contested) -> None:
    entry = forged(store).versions[0]
    plant(
        store,
        forged(
            store,
            kind=RecordKind.PUBLISH,
            fence=10**12,
            versions=(replace(entry, label="theirs"),),
        ),
    )
    done = take_back(store)
    assert done is not None
    before = Reader(store).record(TENANT, ADAPTER, 2)
    assert (done.gen, done.kind, done.fence) == (4, RecordKind.ROLLBACK, before.fence + 1)
    assert (done.active, done.versions) == (before.active, before.versions)
    assert Reader(store, verifier=Trust(trusted())).head(TENANT, ADAPTER) == done
    assert keys(store, "txn") == ()
    assert take_back(store) is None


def test_what_was_staged_and_split_before_the_attack_is_so_again(store: Contested) -> None:
    honest = publisher(store, signer=signer())
    honest.stage(TENANT, ADAPTER, adapter(3), label="next")
    honest.split(TENANT, ADAPTER, {"v1": 1, "v2": 1})
    plant(store, forged(store, kind=RecordKind.TOMBSTONE, active=None, staged=None, split=()))
    done = take_back(store)
    assert done is not None
    assert done.staged is not None
    assert (done.staged.label, len(done.split)) == ("next", 2)


def test_a_race_for_the_slot_is_run_again(store: Contested) -> None:
    plant(store, forged(store, fence=99))
    store.times = 2
    done = take_back(store)
    assert done is not None
    assert done.gen == 6
    assert Reader(store, verifier=Trust(trusted())).resolve(REF).gen == 6


def test_whoever_never_stops_writing_is_named(store: Contested) -> None:
    plant(store, forged(store, fence=99))
    store.times = 1000
    with pytest.raises(Conflict, match="keep writing"):
        take_back(store)
    assert keys(store, "txn") == ()


@pytest.mark.parametrize("how", ["gone", "condemned"])
def test_what_was_served_and_is_not_whole_is_not_served_again(store: Contested, how: str) -> None:
    plant(store, forged(store, fence=99))
    served = Reader(store).record(TENANT, ADAPTER, 2).active
    assert served is not None
    chunk = served.files[0].chunks[0]
    if how == "gone":
        store.delete(chunk.key)
    else:
        condemn(store, chunk.key)
    with pytest.raises(IntegrityError, match="lost bytes"):
        take_back(store)
    done = take_back(store, empty=True)
    assert done is not None
    assert (done.kind, done.active) == (RecordKind.TOMBSTONE, None)
    sign_and_publish(store, 2)
    assert Reader(store, verifier=Trust(trusted())).head(TENANT, ADAPTER).gen == 5


@pytest.mark.parametrize("garbage", [b"garbage", bytes(CHUNK_BYTES + 1)], ids=["short", "huge"])
def test_garbage_in_the_first_slot_leaves_a_deleted_adapter(garbage: bytes) -> None:
    store = MemoryStore()
    store.put_new(log_key(TENANT, ADAPTER, 1), garbage)
    done = take_back(store)
    assert done is not None
    assert (done.gen, done.kind) == (2, RecordKind.TOMBSTONE)
    published = publisher(store, signer=signer(), verifier=Trust(trusted())).publish(
        TENANT, ADAPTER, adapter(1)
    )
    assert Reader(store, verifier=Trust(trusted())).head(TENANT, ADAPTER).gen == published.gen == 3


def test_an_adapter_without_a_log_is_not_found() -> None:
    with pytest.raises(NotFound):
        take_back(MemoryStore())


def condemn(store: ObjectStore, key: str) -> None:
    store.put_new(plan_key(TENANT, "a" * 32), Plan((key,)).encode())
    assert key in condemned_keys(store, TENANT)

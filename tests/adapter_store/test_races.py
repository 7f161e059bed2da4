"""Publishers that race for one adapter on a real store lose no update and leave no gap."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from adapter_store import draft, kinds
from adapter_store.commit import Limits, Published, Publisher
from adapter_store.coordination import NoLock, PublishLock
from adapter_store.draft import Content, State
from adapter_store.errors import Conflict
from adapter_store.locks import open_lock
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage, ObjectHead, ObjectStore
from adapter_store.record import VersionRef
from adapter_store.s3 import S3Store
from tests.adapter_store.faulty_store import OverwritingStore, RacingStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    adapter,
    broken_promises,
    keys,
    publish,
    served_seed,
    split,
    stage,
)

LOCKED_ROUNDS = 40
UNLOCKED_ROUNDS = 10


class MeetingStore:
    """Holds every publisher's first commit of a round until the others are about to commit too."""

    def __init__(self, store: ObjectStore, meeting: threading.Barrier) -> None:
        self._store = store
        self._meeting = meeting
        self._met = False

    def put_new(self, key: str, body: bytes) -> None:
        if "/log/" in key and not self._met:
            self._met = True
            self._meeting.wait(timeout=30)
        self._store.put_new(key, body)

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def head(self, key: str) -> ObjectHead:
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def delete(self, key: str) -> None:
        self._store.delete(key)


def racer(store: ObjectStore, lock: PublishLock) -> Publisher:
    limits = Limits(publish_s=60, settle_s=20)
    return Publisher(store, lock=lock, actor="racer", warn=lambda text: None, limits=limits)


def race(racers: list[Publisher], seeds: list[int]) -> list[Published]:
    """Publish one seed each, all at once; the acknowledged ones."""

    def run(one: Publisher, seed: int) -> Published | None:
        try:
            return one.publish(TENANT, ADAPTER, adapter(seed))
        except Conflict:
            return None

    for seed in seeds:
        adapter(seed)
    with ThreadPoolExecutor(len(racers)) as pool:
        return [done for done in pool.map(run, racers, seeds) if done is not None]


@pytest.mark.services
def test_two_publishers_with_the_lock_lose_no_update(
    s3_store: S3Store, store_at: Callable[..., S3Store], redis_url: str
) -> None:
    racers = [racer(store_at(), open_lock(redis_url)) for _ in range(2)]
    acknowledged = []
    for turn in range(LOCKED_ROUNDS):
        done = race(racers, [2 * turn % 10, (2 * turn + 1) % 10])
        assert len(done) == 2
        acknowledged += done
    written = [done for done in acknowledged if not done.unchanged]
    assert broken_promises(s3_store, acknowledged=written) == []
    assert len(written) == LOCKED_ROUNDS * 2
    # The lock's whole use: nobody uploads for a slot that is lost.
    assert {done.attempt for done in written} == {1}
    assert max(done.gen for done in written) == len(written)
    assert keys(s3_store, "txn") == ()


@pytest.mark.services
def test_two_publishers_without_a_lock_meeting_at_every_slot_lose_no_update(
    s3_store: S3Store, store_at: Callable[..., S3Store]
) -> None:
    acknowledged = []
    for turn in range(UNLOCKED_ROUNDS):
        meeting = threading.Barrier(2)
        racers = [racer(MeetingStore(store_at(), meeting), NoLock()) for _ in range(2)]
        done = race(racers, [2 * turn % 10, (2 * turn + 1) % 10])
        assert sorted(one.attempt for one in done) == [1, 2]
        acknowledged += done
    assert broken_promises(s3_store, acknowledged=acknowledged) == []
    assert sorted(done.gen for done in acknowledged) == list(range(1, 2 * UNLOCKED_ROUNDS + 1))
    assert keys(s3_store, "txn") == ()


def test_six_publishers_without_a_lock_lose_no_update_in_memory() -> None:
    store = MemoryStore()
    for turn in range(20):
        meeting = threading.Barrier(6)
        racers = [racer(MeetingStore(store, meeting), NoLock()) for _ in range(6)]
        done = race(racers, [6 * (turn % 2) + n for n in range(6)])
        written = [one for one in done if not one.unchanged]
        assert broken_promises(store, acknowledged=written) == []
        assert keys(store, "txn") == ()


Change = Callable[[Publisher], Published]


def one_of_each_kind(turn: int) -> dict[str, Change]:
    """Changes that differ from turn to turn, so that none is there already."""
    return {
        "publish": lambda by: by.publish(TENANT, ADAPTER, adapter(3 + turn % 3)),
        "stage": lambda by: by.stage(TENANT, ADAPTER, adapter(6 + turn % 3)),
        "activate": lambda by: by.activate(TENANT, ADAPTER, label="v1"),
        "split": lambda by: by.split(TENANT, ADAPTER, {"v1": turn + 2, "v2": 1}),
        "delete": lambda by: by.delete(TENANT, ADAPTER),
    }


def race_kinds(
    store: ObjectStore, *, turns: int, racer_at: Callable[[], ObjectStore]
) -> list[Published]:
    """All kinds at once for the same slot, some over a split and a staged version."""
    acknowledged = [publish(store, 1, label="v1"), publish(store, 2, label="v2")]
    for turn in range(turns):
        acknowledged.append(publish(store, 9 + turn % 2))
        if turn % 2:
            acknowledged += [stage(store, 11), split(store, {"v1": 1, "v2": turn + 2})]
        changes = list(one_of_each_kind(turn).values())
        meeting = threading.Barrier(len(changes))
        racers = [racer(MeetingStore(racer_at(), meeting), NoLock()) for _ in changes]

        def run(one: Publisher, change: Change) -> Published | None:
            try:
                return change(one)
            except Conflict:
                return None

        with ThreadPoolExecutor(len(racers)) as pool:
            acknowledged += [done for done in pool.map(run, racers, changes) if done is not None]
    return acknowledged


def test_changes_of_every_kind_for_one_slot_lose_nothing_and_each_builds_on_its_parent() -> None:
    store = MemoryStore()
    acknowledged = race_kinds(store, turns=12, racer_at=lambda: store)
    assert broken_promises(store, acknowledged=acknowledged) == []
    assert {done.kind.value for done in acknowledged} >= {"publish", "stage", "activate"}
    assert any(done.attempt > 1 for done in acknowledged)
    assert keys(store, "txn") == ()


@pytest.mark.services
def test_changes_of_every_kind_for_one_slot_lose_nothing_on_a_real_store(
    s3_store: S3Store, store_at: Callable[..., S3Store]
) -> None:
    acknowledged = race_kinds(s3_store, turns=2, racer_at=store_at)
    assert broken_promises(s3_store, acknowledged=acknowledged) == []
    assert keys(s3_store, "txn") == ()


def test_a_staging_drawn_from_a_head_that_was_overtaken_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: a publisher that carries along what it saw first."""
    honest = kinds.stage

    def stale(content: Content) -> draft.Change:
        change = honest(content)
        seen: list[State] = []

        def draw(before: State, versions: tuple[VersionRef, ...]) -> State:
            seen.append(before)
            return change.draw(seen[0], versions)

        return replace(change, draw=draw)

    monkeypatch.setattr(kinds, "stage", stale)
    store = MemoryStore()
    publish(store, 1)
    stage(RacingStore(store, lambda: publish(store, 2)), 3)
    assert "generation 3 is no stage of its parent" in broken_promises(store)


@pytest.mark.services
def test_a_store_that_ignores_the_condition_is_found_to_lose_updates(s3_store: S3Store) -> None:
    """The control, on the real store and in memory: the checker sees what such a store does."""
    for store in (s3_store, MemoryStore()):
        publish(store, 0)
        meeting = threading.Barrier(2)
        careless = OverwritingStore(store)
        racers = [racer(MeetingStore(careless, meeting), NoLock()) for _ in range(2)]
        broken = broken_promises(store, acknowledged=race(racers, [1, 2]))
        assert any("lost" in text for text in broken)


def test_a_lost_record_a_gap_and_a_cut_chain_are_each_found() -> None:
    """The checker's own control."""
    store = MemoryStore()
    acknowledged = [publish(store, seed) for seed in range(1, 5)]
    assert broken_promises(store, acknowledged=acknowledged) == []
    assert served_seed(store) == 4
    log = store.list(f"v1/t/{TENANT}/a/").keys
    store.delete(log[1])
    broken = broken_promises(store, acknowledged=acknowledged)
    assert any("is gone" in text for text in broken)
    assert any("lost" in text for text in broken)
    assert broken_promises(store, failed_txids=[acknowledged[3].txid])[-1].endswith("is in the log")

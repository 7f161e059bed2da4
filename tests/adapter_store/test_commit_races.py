"""Who wins, who stops and who tries again, one step at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from adapter_store.commit import Published
from adapter_store.coordination import Lease
from adapter_store.errors import (
    Conflict,
    LockLost,
)
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from tests.adapter_store.faulty_store import FaultyStore, RacingStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    adapter,
    append,
    broken_promises,
    keys,
    publish,
    publisher,
    served_seed,
)


@dataclass
class FakeLease:
    fence: int
    lost: bool = False
    released: bool = False

    def ensure_held(self) -> None:
        if self.lost:
            raise LockLost("another has it")

    def release(self) -> None:
        self.released = True


@dataclass
class FakeLock:
    """Grants leases, or, when `down`, none; `fence` is the counter."""

    fence: int = 0
    down: bool = False
    reason: str = "Redis is down"
    leases: list[FakeLease] = field(default_factory=list)

    def acquire(self, tenant: str, adapter: str, *, floor: int) -> Lease | None:
        if self.down:
            return None
        self.fence = max(self.fence, floor) + 1
        self.leases.append(FakeLease(self.fence))
        return self.leases[-1]


@dataclass
class FakeAnnouncer:
    said: list[int] = field(default_factory=list)
    broken: bool = False

    def announce(self, tenant: str, adapter: str, gen: int) -> None:
        if self.broken:
            raise RuntimeError("no Redis")
        self.said.append(gen)


def test_the_fence_of_the_lease_is_in_the_record_and_the_lock_is_given_back(
    store: MemoryStore,
) -> None:
    lock, announcer = FakeLock(fence=6), FakeAnnouncer()
    publisher(store, lock=lock, announcer=announcer).publish(TENANT, ADAPTER, adapter(1))
    assert Reader(store).head(TENANT, ADAPTER).fence == 7
    assert [lease.released for lease in lock.leases] == [True]
    assert announcer.said == [1]


def test_without_redis_publishing_goes_on_with_one_warning(store: MemoryStore) -> None:
    warnings: list[str] = []
    down = publisher(store, lock=FakeLock(down=True), warn=warnings.append)
    down.publish(TENANT, ADAPTER, adapter(1))
    assert warnings == ["publishing without the lock: Redis is down"]
    publish(store, 2)
    assert [record.fence for record in Reader(store).history(TENANT, ADAPTER)] == [2, 1]


def test_an_announcer_that_fails_does_not_undo_the_commit(store: MemoryStore) -> None:
    warnings: list[str] = []
    broken = publisher(store, announcer=FakeAnnouncer(broken=True), warn=warnings.append)
    assert broken.publish(TENANT, ADAPTER, adapter(1)).gen == 1
    assert "nodes were not told: no Redis" in warnings


def test_a_lease_lost_for_real_stops_the_publish_before_its_next_write(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    lock = FakeLock()
    racing = RacingStore(store, lambda: setattr(lock.leases[-1], "lost", True), at="/blob/")
    with pytest.raises(LockLost):
        publisher(racing, lock=lock).publish(TENANT, ADAPTER, adapter(2))
    assert served_seed(store) == 1
    assert keys(store, "txn") == ()
    assert all(lease.released for lease in lock.leases)


def test_a_lease_lost_because_redis_died_does_not_stop_the_publish(store: MemoryStore) -> None:
    publish(store, 1)
    lock = FakeLock()
    warnings: list[str] = []

    def dies() -> None:
        lock.leases[-1].lost = True
        lock.down = True

    racing = RacingStore(store, dies, at="/blob/")
    publisher(racing, lock=lock, warn=warnings.append).publish(TENANT, ADAPTER, adapter(2))
    assert served_seed(store) == 2
    assert Reader(store).head(TENANT, ADAPTER).fence == lock.leases[0].fence
    assert len(warnings) == 1


def test_a_publisher_overtaken_by_a_newer_lock_stops(store: MemoryStore) -> None:
    publish(store, 1)
    lock = FakeLock()
    racing = RacingStore(
        store,
        lambda: publisher(store, lock=FakeLock(fence=50)).publish(TENANT, ADAPTER, adapter(3)),
    )
    with pytest.raises(Conflict, match="newer lock"):
        publisher(racing, lock=lock).publish(TENANT, ADAPTER, adapter(2))
    assert served_seed(store) == 3
    assert keys(store, "txn") == ()


def test_a_lease_whose_fence_was_overtaken_while_waiting_is_traded_for_a_higher_one(
    store: MemoryStore,
) -> None:
    publish(store, 1)

    class SlowLock(FakeLock):
        def acquire(self, tenant: str, adapter_name: str, *, floor: int) -> Lease | None:
            lease = super().acquire(tenant, adapter_name, floor=floor)
            if len(self.leases) == 1:
                append(store, fence=30)
            return lease

    lock = SlowLock()
    publisher(store, lock=lock).publish(TENANT, ADAPTER, adapter(2))
    assert Reader(store).head(TENANT, ADAPTER).fence == 31
    assert all(lease.released for lease in lock.leases)


def test_a_publisher_that_lost_the_slot_tries_again_on_top(store: MemoryStore) -> None:
    publish(store, 1)
    others: list[Published] = []
    racing = RacingStore(store, lambda: others.append(publish(store, 3)))
    done = publish(racing, 2)
    assert (done.gen, done.attempt) == (3, 2)
    assert served_seed(store) == 2
    assert keys(store, "txn") == ()
    assert broken_promises(store, acknowledged=[done, *others]) == []


def test_without_rebase_a_lost_slot_is_a_conflict_and_a_fence_is_not(store: MemoryStore) -> None:
    publish(store, 1)
    with pytest.raises(Conflict):
        publish(RacingStore(store, lambda: publish(store, 3)), 2, rebase=False)
    assert served_seed(store) == 3
    assert publish(RacingStore(store, lambda: append(store)), 2, rebase=False).gen == 4
    assert served_seed(store) == 2


def test_losing_to_the_same_content_is_success(store: MemoryStore) -> None:
    publish(store, 1)
    done = publish(RacingStore(store, lambda: publish(store, 2)), 2)
    assert (done.unchanged, done.gen) == (True, 2)
    assert keys(store, "txn") == ()


def test_a_publisher_that_always_loses_gives_up(store: MemoryStore) -> None:
    publish(store, 1)

    class AlwaysLoses(FaultyStore):
        def put_new(self, key: str, body: bytes) -> None:
            if "/log/" in key:
                append(store)
            super().put_new(key, body)

    with pytest.raises(Conflict, match="5 times"):
        publish(AlwaysLoses(store), 2)
    assert served_seed(store) == 1
    assert keys(store, "txn") == ()

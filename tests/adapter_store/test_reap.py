"""Intents of publishers that are gone."""

from __future__ import annotations

import pytest

from adapter_store import layout
from adapter_store.errors import Conflict
from adapter_store.intent import Intent
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.reap import Reaped
from adapter_store.record import RecordKind
from tests.adapter_store.collecting import collect, collector, dated_store, everything, kept_seeds
from tests.adapter_store.faulty_store import Fault, FaultyStore, Killed, RacingStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    adapter,
    broken_promises,
    publish,
    publisher,
    served_seed,
)


def abandon(store: MemoryStore, seed: int) -> None:
    """A publisher is killed right before its commit."""
    puts = FaultyStore(store, puts_only=True)
    with pytest.raises(Killed):
        publish(RacingStore(puts, _die), seed)


def _die() -> None:
    raise Killed


def reap(store: object, older_s: float = 0.0) -> Reaped:
    return collector(store).reap(TENANT, older_s=older_s)  # type: ignore[arg-type]


def test_an_intent_whose_slot_is_taken_goes_at_once() -> None:
    store = MemoryStore()
    publish(store, 1)
    abandon(store, 2)
    publish(store, 3)
    assert reap(store, 3600) == Reaped(dead=1, fenced=0, waiting=0, stuck=0)
    assert everything(store, "txn") == []
    assert Reader(store).head(TENANT, ADAPTER).gen == 2


def test_a_free_slot_is_filled_only_when_the_intent_is_old_and_then_changes_nothing() -> None:
    store, calendar = dated_store()
    publish(store, 1)
    abandon(store, 2)
    calendar.now += 3500
    assert reap(store, 3600) == Reaped(dead=0, fenced=0, waiting=1, stuck=0)
    calendar.now += 200
    assert reap(store, 3600) == Reaped(dead=0, fenced=1, waiting=0, stuck=0)
    head = Reader(store).head(TENANT, ADAPTER)
    assert (head.gen, head.kind) == (2, RecordKind.FENCE)
    assert served_seed(store) == 1
    assert everything(store, "txn") == everything(store, "gc") == []
    collect(store)
    assert kept_seeds(store) == {1}
    assert broken_promises(store) == []


def test_the_first_publish_of_an_adapter_can_be_given_up_too() -> None:
    store = MemoryStore()
    abandon(store, 2)
    assert reap(store).fenced == 1
    assert Reader(store).head(TENANT, ADAPTER).active is None
    collect(store)
    assert everything(store, "blob") == []
    assert publish(store, 2).gen == 2


def test_a_publisher_that_was_only_slow_finds_its_slot_taken_and_goes_on_above() -> None:
    store = MemoryStore()
    publish(store, 1)
    slow = RacingStore(store, lambda: (reap(store), collect(store)))
    done = publish(slow, 2)
    assert (done.gen, done.attempt) == (3, 2)
    assert served_seed(store) == 2
    assert broken_promises(store, acknowledged=[done]) == []
    slow = RacingStore(store, lambda: reap(store))
    with pytest.raises(Conflict):
        publisher(slow).publish(TENANT, ADAPTER, adapter(3), expect_gen=3)


def test_what_cannot_be_read_or_filled_is_left_and_named() -> None:
    store = MemoryStore()
    publish(store, 1)
    damaged = layout.intent_key(TENANT, "a" * 32, 1)
    beyond = layout.intent_key(TENANT, "b" * 32, 1)
    store.put_new(damaged, b"{}")
    store.put_new(beyond, Intent(ADAPTER, 7, ()).encode())
    warned: list[str] = []
    done = collector(store, warn=warned.append).reap(TENANT, older_s=0)
    assert done == Reaped(dead=0, fenced=0, waiting=0, stuck=2)
    assert [text.split(" ")[0] for text in warned] == [damaged, beyond]
    assert Reader(store).head(TENANT, ADAPTER).gen == 1


def abandoned() -> MemoryStore:
    """One intent whose slot is free and one whose slot is taken."""
    store = MemoryStore()
    publish(store, 1)
    abandon(store, 2)
    publisher(store).publish(TENANT, "other", adapter(4))
    stale = Intent("other", 1, ()).encode()
    store.put_new(layout.intent_key(TENANT, "f" * 32, 1), stale)
    return store


def test_a_reaper_killed_at_any_operation_changes_nothing_and_the_next_one_finishes() -> None:
    clean = FaultyStore(abandoned())
    assert reap(clean) == Reaped(dead=1, fenced=1, waiting=0, stuck=0)
    assert len(clean.operations) >= 9
    for point in range(len(clean.operations)):
        for fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER):
            store = abandoned()
            with pytest.raises(Killed):
                reap(FaultyStore(store, at=point, fault=fault))
            where = f"{fault.value} {point} ({clean.operations[point]})"
            assert served_seed(store) == 1, where
            reap(store)
            assert everything(store, "txn") == [], where
            # The slot of the intent was filled before the intent went, or nothing keeps a
            # publisher that lives after all from committing chunks that are collected.
            assert Reader(store).head(TENANT, ADAPTER).gen == 2, where
            assert broken_promises(store) == [], where

"""Versions that stay whatever their age, and what a dry run tells of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from adapter_store import layout
from adapter_store.errors import NotFound
from adapter_store.intent import Plan
from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectStore
from adapter_store.pins import pin, pins_of, unpin
from adapter_store.reader import Reader, Resolved
from adapter_store.retention import Roots
from tests.adapter_store.collecting import collect, collector, everything, kept_seeds
from tests.adapter_store.faulty_store import Fault, FaultyStore
from tests.adapter_store.interleavings import Explorer
from tests.adapter_store.publishing import (
    ADAPTER,
    REF,
    TENANT,
    publish,
    roll_back,
    served_seed,
)
from tests.adapter_store.test_gc_interleavings import collecting, two_versions


def version(store: ObjectStore, label: str) -> Resolved:
    return Reader(store).resolve(replace(REF, label=label))


def test_a_pinned_version_stays_and_can_be_served_again() -> None:
    store = MemoryStore()
    for seed in range(4):
        publish(store, seed)
    made = pin(store, version(store, "v2"))
    assert pin(store, version(store, "v2")) == made
    collect(store)
    assert kept_seeds(store) == {1, 3}
    roll_back(store, to="v2")
    assert served_seed(store) == 1
    assert pins_of(store, TENANT) == pins_of(store, TENANT, ADAPTER) == [made]
    assert pins_of(store, TENANT, "other") == []


def test_without_its_pin_a_version_goes() -> None:
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2)
    old = version(store, "v1")
    pin(store, old)
    unpin(store, TENANT, ADAPTER, old.version.vdig)
    with pytest.raises(NotFound, match="not pinned"):
        unpin(store, TENANT, ADAPTER, old.version.vdig)
    collect(store)
    assert kept_seeds(store) == {2}


def test_a_pin_holds_the_content_under_any_key_that_a_record_names_it_by() -> None:
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2)
    pin(store, version(store, "v1"))
    # The first copy is condemned, so that serving v1 again makes another.
    old = [key for key in everything(store, "blob") if "v1" not in key]
    store.put_new(layout.plan_key(TENANT, "e" * 32), Plan(tuple(old)).encode())
    roll_back(store, to="v1")
    publish(store, 3)
    collect(store)
    found = version(store, "v1")
    assert Reader(store).fetch(TENANT, found.version, adapter=ADAPTER)


def test_a_version_that_a_collector_condemned_or_took_is_not_pinned_and_no_pin_stays() -> None:
    for take in (False, True):
        store = MemoryStore()
        publish(store, 1)
        publish(store, 2)
        old = version(store, "v1")
        key = old.version.files[1].chunks[0].key
        if take:
            store.delete(key)
        else:
            store.put_new(layout.plan_key(TENANT, "e" * 32), Plan((key,)).encode())
        with pytest.raises(NotFound, match="no longer kept"):
            pin(store, old)
        assert everything(store, "pin") == []


def test_a_pin_whose_answer_was_lost_is_made_once() -> None:
    for fault in (Fault.LOST_ANSWER, Fault.LOST_REQUEST):
        store = MemoryStore()
        publish(store, 1)
        flaky = FaultyStore(store, at=0, fault=fault, puts_only=True)
        pin(flaky, version(store, "v1"), sleep=lambda seconds: None)
        assert len(everything(store, "pin")) == 1


class Overtaken(MemoryStore):
    """While somebody takes a pin back that came too late, another pins the version in time."""

    plan = ""

    def delete(self, key: str) -> None:
        if "/pin/" in key and self.plan:
            plan, self.plan = self.plan, ""
            super().delete(plan)
            pin(self, version(self, "v1"))
        super().delete(key)


def test_a_pin_that_came_too_late_takes_nobody_elses_away() -> None:
    store = Overtaken()
    publish(store, 1)
    publish(store, 2)
    old = version(store, "v1")
    store.plan = layout.plan_key(TENANT, "e" * 32)
    store.put_new(store.plan, Plan((old.version.files[1].chunks[0].key,)).encode())
    with pytest.raises(NotFound, match="no longer kept"):
        pin(store, old)
    assert [made.vdig for made in pins_of(store, TENANT)] == [old.version.vdig]
    collect(store)
    assert kept_seeds(store) == {1, 2}


def acknowledged_pin(store: ObjectStore) -> None:
    pin(store, version(store, "v1"))
    # Said aloud in the store, so that the search sees it.
    store.put_new("v1/acknowledged", b"")


def lost_pin(bodies: Mapping[str, bytes]) -> str:
    if "v1/acknowledged" not in bodies:
        return ""
    store = MemoryStore()
    for key, body in bodies.items():
        store.put_new(key, body)
    return "" if kept_seeds(store) >= {1} else "an acknowledged pin lost a chunk"


def outcome_of_a_race() -> set[str]:
    """How a pin and two collections end in every order, and what is broken on the way."""
    processes = {
        "pin": acknowledged_pin,
        "first": collecting("b"),
        "second": collecting("c"),
    }
    found = Explorer(two_versions(), processes, lost_pin).explore()
    return found.outcomes | {found.violation}


def test_in_every_order_a_pin_holds_or_says_that_it_came_too_late() -> None:
    outcomes = outcome_of_a_race()
    assert outcomes == {
        *("pin: returned", "pin: NotFound"),
        *("first: returned", "second: returned"),
        "",
    }


def test_a_collector_that_reads_the_pins_only_before_its_plan_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control."""
    honest = Roots._pinned
    seen: dict[Roots, frozenset[str]] = {}
    monkeypatch.setattr(Roots, "_pinned", lambda self: seen.setdefault(self, honest(self)))
    assert "an acknowledged pin lost a chunk" in outcome_of_a_race()


def test_a_dry_run_says_what_would_go_and_why_and_writes_nothing() -> None:
    store = MemoryStore()
    for seed in range(4):
        publish(store, seed)
    pin(store, version(store, "v2"))
    orphan = layout.blob_key(TENANT, "d" * 64, "e" * 32, 1)
    store.put_new(orphan, b"four")
    before = store.list("").keys
    survey = collector(store).plan(TENANT)
    assert store.list("").keys == before
    expired = [g for g in survey.garbage if g.adapter]
    assert [(g.adapter, g.label, g.gen, g.why) for g in expired] == [
        (ADAPTER, "v3", 3, "out of retention"),
        (ADAPTER, "v1", 1, "out of retention"),
    ]
    (unnamed,) = (g for g in survey.garbage if not g.adapter)
    assert (unnamed.chunks, unnamed.bytes, unnamed.why) == (1, 4, "named by no record")
    done = collect(store)
    assert done.deleted == sum(g.chunks for g in survey.garbage)
    assert done.bytes_deleted == sum(g.bytes for g in survey.garbage)
    assert (survey.chunks, survey.chunks - done.deleted) == (
        done.chunks,
        len(everything(store, "blob")),
    )

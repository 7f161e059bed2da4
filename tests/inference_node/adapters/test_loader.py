"""Versions are fetched once, checked, and copied whole; news of a log is posted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from adapter_store.errors import (
    IntegrityError,
    NotFound,
    StoreUnavailable,
)
from adapter_store.layout import AdapterRef
from inference_node.adapters import pool as pool_module
from inference_node.adapters.reports import Filled, Learned, Prepared, Resolved, Target, Unfilled
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterNotFound,
    EngineFailure,
    NodeError,
    StaleNode,
    StoreDown,
)
from tests.inference_node.adapters.loader_desk import (
    BASE,
    PATIENCE,
    REF,
    THREADS,
    Desk,
    target_of,
)


@pytest.fixture
def desk() -> Iterator[Desk]:
    opened = Desk()
    yield opened
    opened.store.gate.set()
    opened.loader.close()


def test_a_reference_resolves_to_one_immutable_entry(desk: Desk) -> None:
    version = desk.store.publish("anna", 3)
    event = desk.resolution(REF, min_generation=3)
    assert isinstance(event, Resolved)
    expected = Entry("t", "anna", "v3", 3, VersionKey("t", version.vdig))
    assert event.target == Target(expected, version)


def test_a_log_below_the_generation_asked_for_says_so_and_when_to_retry(desk: Desk) -> None:
    desk.store.publish("anna", 3)
    error = desk.unresolved(REF, min_generation=4)
    assert isinstance(error, StaleNode)
    assert error.retry_after


def test_a_pinned_reference_does_not_heed_the_generation_asked_for(desk: Desk) -> None:
    desk.store.publish("anna", 3)
    event = desk.resolution(AdapterRef("t", "anna", label="v3"), min_generation=4)
    assert isinstance(event, Resolved)


def test_a_version_for_another_base_is_refused_before_anything_is_fetched(desk: Desk) -> None:
    version = replace(desk.store.publish("anna", 1), base="0ther" * 8)
    desk.store.served["anna"] = (1, version)
    error = desk.unresolved(REF)
    assert isinstance(error, AdapterIncompatible)
    assert error.details == {"adapter_base": version.base, "node_base": BASE}
    assert isinstance(desk.refusal(target_of(version)), AdapterIncompatible)
    assert desk.store.fetched == []


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NotFound("no"), AdapterNotFound),
        (StoreUnavailable("no"), StoreDown),
        (IntegrityError("no"), AdapterCorrupt),
        (RuntimeError("no"), EngineFailure),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_every_failure_to_resolve_is_answered_with_what_is_now_true(
    desk: Desk, failure: Exception, expected: type[NodeError]
) -> None:
    desk.store.failures.append(failure)
    error = desk.unresolved(REF)
    assert type(error) is expected
    assert error.__cause__ is failure


def test_a_version_is_fetched_once_however_often_it_is_asked_for_meanwhile(desk: Desk) -> None:
    target = target_of(desk.store.publish("anna", 1))
    desk.store.gate.clear()
    for _ in range(5):
        desk.loader.prepare(target)
    assert desk.store.entered.acquire(timeout=PATIENCE)
    for _ in range(5):
        desk.loader.prepare(target)
    desk.store.gate.set()
    assert isinstance(desk.next(), Prepared)
    desk.loader.close()
    assert desk.store.fetched == [target.entry.key.vdig]
    assert desk.events.empty()


def test_control_without_the_note_of_what_is_in_flight_a_version_is_fetched_twice(
    desk: Desk,
) -> None:
    target = target_of(desk.store.publish("anna", 1))
    desk.store.gate.clear()
    desk.loader.prepare(target)
    desk.loader.settled(target.entry.key)
    desk.loader.prepare(target)
    assert desk.store.entered.acquire(timeout=PATIENCE)
    assert desk.store.entered.acquire(timeout=PATIENCE)
    desk.store.gate.set()
    assert len(desk.store.fetched) == 2


def test_two_versions_are_fetched_side_by_side(desk: Desk) -> None:
    targets = [target_of(desk.store.publish(name, 1)) for name in ("anna", "ben")]
    desk.store.gate.clear()
    for target in targets:
        desk.loader.prepare(target)
    for _ in targets:
        assert desk.store.entered.acquire(timeout=PATIENCE)
    desk.store.gate.set()
    keys = {event.key for event in (desk.next(), desk.next()) if isinstance(event, Prepared)}
    assert keys == {target.entry.key for target in targets}


def test_a_verified_version_is_kept_on_the_host_and_not_fetched_again(desk: Desk) -> None:
    target = target_of(desk.store.publish("anna", 1))
    one, other = desk.prepared(target), desk.prepared(target)
    assert isinstance(one, Prepared)
    assert isinstance(other, Prepared)
    assert other.host is one.host
    assert len(desk.store.fetched) == 1


def test_equal_digests_of_two_tenants_are_fetched_for_each(desk: Desk) -> None:
    version = desk.store.publish("anna", 1)
    desk.prepared(target_of(version, tenant="t"))
    desk.prepared(target_of(version, tenant="u"))
    assert len(desk.store.fetched) == 2


def test_what_the_host_has_no_room_for_is_fetched_again() -> None:
    desk = Desk(host_bytes=1)
    target = target_of(desk.store.publish("anna", 1))
    for _ in range(2):
        assert isinstance(desk.prepared(target), Prepared)
    assert len(desk.store.fetched) == 2
    desk.loader.close()


def test_filling_copies_the_version_into_its_pages(desk: Desk) -> None:
    slots = SlotTable(desk.pool.allocator)
    event = desk.prepared(target_of(desk.store.publish("anna", 1, rank=12)))
    assert isinstance(event, Prepared)
    staged = slots.stage(event.key, wanted=event.host.pages, scale=event.host.scale)
    desk.loader.fill(staged, event.host)
    assert desk.next() == Filled(staged)
    for (a, b), group in zip(desk.pool.read_back(staged), event.host.groups, strict=True):
        assert group is not None
        assert torch.equal(a, group.a)
        assert torch.equal(b, group.b)


def test_a_copy_that_fails_is_answered(desk: Desk) -> None:
    slots = SlotTable(desk.pool.allocator)
    event = desk.prepared(target_of(desk.store.publish("anna", 1, rank=12)))
    assert isinstance(event, Prepared)
    staged = slots.stage(event.key, wanted=(1, 1), scale=1.0)
    desk.loader.fill(staged, event.host)
    answer = desk.next()
    assert isinstance(answer, Unfilled)
    assert answer.staged is staged
    assert isinstance(answer.error, EngineFailure)
    assert answer.wiped
    for a, b in desk.pool.read_back(staged):
        assert not a.any()
        assert not b.any()


def test_pages_that_do_not_keep_the_zeros_are_reported_unwiped(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = SlotTable(desk.pool.allocator)
    event = desk.prepared(target_of(desk.store.publish("anna", 1, rank=12)))
    assert isinstance(event, Prepared)
    staged = slots.stage(event.key, wanted=event.host.pages, scale=1.0)
    desk.pool.write(staged, event.host)

    def broken(*tensors: torch.Tensor) -> None:
        raise RuntimeError("the device does not take it")

    monkeypatch.setattr(pool_module, "_copy", broken)
    desk.loader.fill(staged, event.host)
    answer = desk.next()
    assert isinstance(answer, Unfilled)
    assert not answer.wiped
    monkeypatch.setattr(pool_module, "_copy", lambda source, target: None)
    with pytest.raises(RuntimeError, match="does not keep"):
        desk.pool.wipe(staged)


def test_a_fetch_that_has_not_begun_can_be_called_off_and_one_that_has_cannot() -> None:
    desk = Desk()
    desk.store.gate.clear()
    targets = [target_of(desk.store.publish(f"n{number}", 1)) for number in range(5)]
    for target in targets:
        desk.loader.prepare(target)
    for _ in range(THREADS):
        assert desk.store.entered.acquire(timeout=PATIENCE)
    assert not desk.loader.call_off(targets[0].entry.key)
    assert desk.loader.call_off(targets[-1].entry.key)
    assert not desk.loader.call_off(targets[-1].entry.key)
    desk.store.gate.set()
    desk.loader.close()
    assert targets[-1].entry.key.vdig not in desk.store.fetched


def test_looking_at_a_log_posts_only_what_is_new(desk: Desk) -> None:
    version = desk.store.publish("anna", 3)
    desk.loader.look("t", "anna", 3)
    assert desk.events.empty()
    desk.loader.look("t", "anna", 2)
    event = desk.next()
    assert isinstance(event, Learned)
    assert event.gen == 3
    assert event.target == target_of(version, gen=3)


def test_looking_at_a_log_that_serves_nothing_any_more_posts_a_tombstone(desk: Desk) -> None:
    desk.store.served["anna"] = (4, None)
    desk.loader.look("t", "anna", 3)
    assert desk.next() == Learned("t", "anna", 4, None)

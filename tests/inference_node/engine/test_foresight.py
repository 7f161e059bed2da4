"""What may be served next is brought before anybody asks, and never at anybody's expense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from adapter_store.fleet import Standing
from inference_node.adapters.reports import AskedAhead, Learned, Resolved, Target
from inference_node.adapters.versions import Residency
from inference_node.engine.foresight import ASKED_SECONDS, REFRESH_SECONDS, Foresight
from inference_node.errors import AdapterCorrupt, StoreDown
from tests.inference_node.engine.scripted_admission import TENANT, ScriptedAdmission, target

ADA = (TENANT, "ada")
CORRUPT = AdapterCorrupt("ada@v2: a chunk is damaged")
AWAY = StoreDown("the store does not answer", retry_after=1.0)


def news(desk: ScriptedAdmission, gen: int, active: Target, ahead: Sequence[Target] = ()) -> None:
    """The log of ada has grown: what is active by it, and what is named beside it."""
    desk.admission.on_event(Learned(TENANT, "ada", gen, active, tuple(ahead)))
    tick(desk)


def tick(desk: ScriptedAdmission) -> None:
    desk.now += REFRESH_SECONDS
    desk.admission.tick()
    desk.check()


def serving(pages: int = 8) -> ScriptedAdmission:
    """A node that serves ada's first generation."""
    desk = ScriptedAdmission(pages=pages, headroom=0)
    desk.end(desk.load(target("ada", 1)))
    return desk


def renamed(one: Target, gen: int) -> Target:
    """The same content under another generation."""
    return Target(replace(one.entry, gen=gen), one.version)


def test_what_is_staged_for_a_served_name_is_resident_before_it_is_active() -> None:
    desk = serving()
    staged = target("ada", 2)
    news(desk, 2, renamed(target("ada", 1), 2), [staged])
    assert desk.fetching() == [("ada", 2)]
    desk.fetched()
    desk.filled()
    assert desk.serves("ada") == 2, "the record is newer, and what it serves is the old version"
    assert desk.slots.serving(*ADA) == renamed(target("ada", 1), 2).entry
    news(desk, 3, renamed(staged, 3))
    assert (desk.serves("ada"), desk.fetching()) == (3, []), "the flip fetches nothing"
    news(desk, 4, renamed(target("ada", 1), 4))
    assert (desk.serves("ada"), desk.fetching()) == (4, []), "nor does the way back"


def test_control_a_node_without_foresight_fetches_when_it_is_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Foresight, "tick", lambda self: None)
    desk = serving()
    news(desk, 2, renamed(target("ada", 1), 2), [target("ada", 2)])
    news(desk, 3, renamed(target("ada", 2), 3))
    assert (desk.serves("ada"), desk.fetching()) == (2, [("ada", 3)])


def test_a_name_that_is_only_now_loaded_brings_what_is_staged_with_it() -> None:
    desk = ScriptedAdmission()
    desk.ask("ada")
    token = desk.loader.lookups.pop(0).token
    active, staged = target("ada", 2), target("ada", 3)
    desk.admission.on_event(Resolved(token, active, ahead=(staged,)))
    tick(desk)
    assert desk.fetching() == [("ada", 2), ("ada", 3)]


def test_another_nodes_adapter_is_not_fetched_until_somebody_asks_for_it() -> None:
    desk = ScriptedAdmission()
    news(desk, 2, target("ada", 1), [target("ada", 2)])
    assert desk.fetching() == []
    desk.admission.on_event(AskedAhead(*ADA))
    news(desk, 2, target("ada", 1), [target("ada", 2)])
    assert sorted(desk.fetching()) == [("ada", 1), ("ada", 2)]
    for _ in range(2):
        desk.fetched()
        desk.filled()
    assert desk.serves("ada") == 1
    news(desk, 3, renamed(target("ada", 2), 3))
    assert desk.serves("ada") == 3


def test_a_name_that_was_asked_for_is_let_go_when_its_time_is_over() -> None:
    desk = ScriptedAdmission()
    desk.admission.on_event(AskedAhead(*ADA))
    assert desk.admission.foresight.is_asked(ADA)
    desk.now += ASKED_SECONDS
    tick(desk)
    assert not desk.admission.foresight.is_asked(ADA)
    assert desk.admission.soonest() is None


def test_what_is_staged_anew_takes_the_place_of_what_was_staged_before() -> None:
    desk = serving()
    news(desk, 2, renamed(target("ada", 1), 2), [target("ada", 2)])
    news(desk, 3, renamed(target("ada", 1), 3), [target("ada", 3)])
    assert desk.fetching() == [("ada", 2), ("ada", 3)]
    desk.fetched()
    desk.fetched()
    assert [staged.key.vdig for staged in desk.loader.fills] == ["ada-3"], "nobody wants the other"


def test_it_takes_idle_pages_and_waits_for_those_that_requests_hold() -> None:
    desk = serving(pages=3)
    held = desk.load(target("ben", 1))
    news(desk, 2, renamed(target("ada", 1), 2), [target("ada", 2)])
    desk.fetched(3)
    assert not desk.loader.fills, "it would not fit beside what is held"
    desk.now += 60
    tick(desk)
    desk.admission.relieve([held], lambda sequence: None)
    assert held.lease is not None, "nobody makes way for it"
    desk.end(held)
    assert [staged.key.vdig for staged in desk.loader.fills] == ["ada-2"]


def test_a_version_that_is_damaged_is_said_once_and_one_that_is_late_is_tried_again() -> None:
    desk = serving()
    staged = target("ada", 2)
    news(desk, 2, renamed(target("ada", 1), 2), [staged])
    desk.fetched(AWAY)
    (refused,) = desk.admission.foresight.refused()
    assert (refused.entry, refused.for_good) == (staged.entry, False)
    for _ in range(10):
        tick(desk)
    assert desk.fetching() == [("ada", 2)], "once the setback is over"
    desk.fetched(CORRUPT)
    for _ in range(400):
        tick(desk)
    (refused,) = desk.admission.foresight.refused()
    assert (refused.for_good, desk.fetching()) == (True, [])
    news(desk, 3, renamed(target("ada", 1), 3))
    assert list(desk.admission.foresight.refused()) == []


def test_what_was_evicted_is_fetched_again_while_it_is_expected() -> None:
    desk = serving(pages=2)
    news(desk, 2, renamed(target("ada", 1), 2), [target("ada", 2)])
    desk.fetched()
    desk.filled()
    desk.slots.drain(target("ada", 2).entry.key)
    tick(desk)
    assert desk.fetching() == [("ada", 2)]


def test_a_name_that_is_no_longer_served_brings_nothing() -> None:
    desk = serving()
    desk.slots.drain(target("ada", 1).entry.key)
    news(desk, 2, renamed(target("ada", 1), 2), [target("ada", 2)])
    assert desk.fetching() == []
    assert desk.admission.soonest() is None


def test_an_older_record_that_comes_late_changes_nothing() -> None:
    desk = serving()
    news(desk, 3, renamed(target("ada", 1), 3), [target("ada", 3)])
    news(desk, 2, renamed(target("ada", 1), 2), [target("ada", 2)])
    assert desk.fetching() == [("ada", 3)]
    assert {held.state for held in desk.slots.holders()} == {Residency.RESIDENT}
    assert Standing.COMING.ready is False

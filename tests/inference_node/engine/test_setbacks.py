"""A version that fails to load is left alone and tried again; the old one serves meanwhile."""

from __future__ import annotations

import pytest

from inference_node.adapters.reports import Learned
from inference_node.engine.setbacks import Setbacks
from inference_node.errors import (
    AdapterCorrupt,
    EngineFailure,
    LoadFailed,
    StoreDown,
)
from tests.inference_node.engine.scripted_admission import ScriptedAdmission, target

AWAY = StoreDown("the store does not answer", retry_after=1.0)
BROKEN = EngineFailure("loading the adapter failed")


def fail_to_fetch(desk: ScriptedAdmission, error: StoreDown | EngineFailure) -> None:
    desk.ask("ada")
    desk.resolve(target("ada"))
    desk.fetched(error)


@pytest.mark.parametrize(
    ("error", "expected"), [(AWAY, StoreDown), (BROKEN, LoadFailed)], ids=["store", "other"]
)
def test_a_version_that_failed_to_load_is_left_alone_for_a_while_and_says_for_how_long(
    error: StoreDown | EngineFailure, expected: type[Exception]
) -> None:
    desk = ScriptedAdmission()
    waits = []
    for _ in range(8):
        fail_to_fetch(desk, error)
        refused = desk.ask("ada")
        desk.resolve(target("ada"))
        assert desk.loader.fetches == []
        assert type(desk.failed[refused]) is expected
        wait = desk.failed[refused].retry_after
        assert wait is not None
        waits.append(wait)
        desk.now += wait
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    again = desk.ask("ada")
    desk.resolve(target("ada"))
    desk.fetched()
    desk.filled()
    assert again.lease is not None
    fail = desk.admission.arrivals._setbacks
    assert fail.failures(target("ada").entry.key) == 0, "a success ends the row"


def test_control_without_the_setback_every_request_fetches_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Setbacks, "refusal", lambda self, entry: None)
    with pytest.raises(AssertionError):
        test_a_version_that_failed_to_load_is_left_alone_for_a_while_and_says_for_how_long(
            AWAY, StoreDown
        )


def test_a_swap_that_failed_for_a_passing_reason_is_tried_again_by_itself() -> None:
    desk = ScriptedAdmission()
    desk.end(desk.load(target("ada", 1)))
    desk.learn("ada", 2)
    desk.fetched(AWAY)
    desk.learn("ada", 2)
    assert desk.fetching() == [], "learning of it again does not fetch it sooner"
    assert desk.admission.soonest() == desk.now + 1.0
    desk.now += 0.9
    desk.admission.tick()
    assert desk.fetching() == []
    desk.now += 0.1
    desk.admission.tick()
    assert desk.admission.soonest() is None
    desk.fetched()
    desk.filled()
    assert desk.serves("ada") == 2


def test_a_newer_version_does_not_wait_for_an_older_one_that_failed() -> None:
    desk = ScriptedAdmission()
    desk.end(desk.load(target("ada", 1)))
    desk.learn("ada", 2)
    desk.fetched(AWAY)
    desk.learn("ada", 3)
    assert desk.fetching() == [("ada", 3)]
    desk.fetched()
    desk.filled()
    desk.now += 120.0
    desk.admission.tick()
    assert desk.fetching() == []
    assert desk.serves("ada") == 3


def test_a_version_that_is_corrupt_is_not_tried_again_and_the_old_one_serves() -> None:
    desk = ScriptedAdmission()
    desk.end(desk.load(target("ada", 1)))
    desk.learn("ada", 2)
    desk.fetched(AdapterCorrupt("its bytes are not what the log says"))
    assert desk.admission.soonest() is None
    assert desk.serves("ada") == 1
    desk.learn("ada", 3)
    desk.fetched()
    desk.filled()
    assert desk.serves("ada") == 3


def test_a_deleted_name_is_not_brought_back_by_a_version_that_waited() -> None:
    desk = ScriptedAdmission()
    desk.end(desk.load(target("ada", 1)))
    desk.learn("ada", 2)
    desk.fetched(AWAY)
    desk.admission.on_event(Learned("t", "ada", 3, None))
    desk.now += 10.0
    desk.admission.tick()
    assert desk.fetching() == []
    assert desk.serves("ada") is None


@pytest.mark.parametrize("wiped", [True, False])
def test_a_failed_copy_gives_its_pages_back_wiped_or_never_and_the_old_version_serves(
    wiped: bool,
) -> None:
    desk = ScriptedAdmission(pages=8)
    desk.end(desk.load(target("ada", 1), pages=2))
    desk.learn("ada", 2)
    desk.fetched(2)
    staged = desk.loader.fills[0]
    desk.filled(BROKEN, wiped=wiped)
    assert desk.serves("ada") == 1
    assert desk.slots.by_use().condemned == ((0,) if wiped else (2,))
    free = set(desk.slots.allocator._free[0])
    assert (set(staged.pages[0]) <= free) == wiped
    desk.now += 1.0
    desk.admission.tick()
    desk.fetched(2)
    desk.filled()
    assert desk.serves("ada") == 2


def test_a_request_that_waited_for_a_copy_that_failed_is_told_so() -> None:
    desk = ScriptedAdmission()
    waiting = desk.ask("ada")
    desk.resolve(target("ada"))
    desk.fetched()
    desk.filled(BROKEN)
    assert isinstance(desk.failed[waiting], EngineFailure)

"""What F2 calls broken; the row itself runs in tests/chaos/test_rows.py."""

from __future__ import annotations

import threading
import time

import pytest

from tests.chaos.fleet.callers import Call, Caller
from tests.chaos.fleet.faults import running
from tests.chaos.fleet.front import Failure
from tests.chaos.fleet.steady import Placement, Spread
from tests.chaos.fleet.windows import DRAIN, KILL, Window, judged, lost_elsewhere
from tests.inference_node.tattoo import Verdict

WINDOWS = (Window(KILL, 10.0, 14.0), Window(DRAIN, 12.0, 20.0))


def test_an_answer_by_the_right_version_breaks_nothing() -> None:
    assert list(judged(Call(0, 1.0, 2.0, Verdict.RIGHT), WINDOWS)) == []


@pytest.mark.parametrize("found", [one for one in Verdict if one is not Verdict.RIGHT])
def test_any_other_answer_is_broken_whatever_was_the_matter(found: Verdict) -> None:
    assert len(list(judged(Call(0, 11.0, 13.0, found), WINDOWS))) == 1


def test_an_answer_older_than_its_caller_saw_is_broken() -> None:
    assert list(judged(Call(0, 1.0, 2.0, Verdict.RIGHT, older="older"), WINDOWS)) == ["older"]


@pytest.mark.parametrize(
    ("began", "ended", "retryable", "broken"),
    [
        (9.0, 11.0, True, 0),
        (9.0, 11.0, False, 1),
        (13.0, 15.0, True, 0),
        (15.0, 16.0, True, 1),
        (21.0, 22.0, True, 1),
    ],
    ids=["a kill", "no word on when", "a kill and a drain", "a drain", "nothing"],
)
def test_a_request_may_be_lost_to_a_kill_and_to_nothing_that_costs_none(
    began: float, ended: float, retryable: bool, broken: int
) -> None:
    call = Call(0, began, ended, None, "NODE_UNREACHABLE", retryable)
    assert len(list(judged(call, WINDOWS))) == broken


@pytest.mark.parametrize(
    ("adapter", "node", "seconds_later", "broken"),
    [
        ("tattoo-3", "killed:1", 0.5, 0),
        ("tattoo-3", "other:1", 0.5, 1),
        ("tattoo-4", "killed:1", 0.5, 1),
        ("tattoo-3", "killed:1", 9.0, 1),
    ],
    ids=["on it", "on another node", "another adapter's", "a later one"],
)
def test_what_is_lost_to_a_kill_was_on_that_node(
    adapter: str, node: str, seconds_later: float, broken: int
) -> None:
    began, to_wall_clock = 100.0, time.time() - time.monotonic()
    windows = [Window(KILL, began + 0.8, began + 1.0, "killed:1")]
    calls = [Call(3, began, began + 1.0, None), Call(3, began, began + 1.0, Verdict.RIGHT)]
    failures = [Failure(adapter, node, to_wall_clock + began + seconds_later)]
    assert len(lost_elsewhere(calls, windows, failures)) == broken


@pytest.mark.parametrize(
    ("by_node", "not_right", "broken"),
    [
        ([10, 8, 6], [], 0),
        ([10, 8, 6], [Verdict.BASE], 1),
        ([12, 6, 6], [], 1),
        ([11, 11, 0], [], 1),
        ([24, 0, 0], [], 2),
    ],
)
def test_a_hot_adapter_is_on_all_nodes_and_on_none_far_more_than_its_share(
    by_node: list[int], not_right: list[Verdict], broken: int
) -> None:
    assert len(Spread(by_node, not_right).broken()) == broken


@pytest.mark.parametrize(("affinity", "broken"), [(0.95, 0), (0.949, 1)])
def test_nearly_all_requests_are_on_their_node(affinity: float, broken: int) -> None:
    assert len(Placement(1_000, affinity).broken()) == broken


class Broken(Caller):
    def run(self, stop: threading.Event) -> None:
        raise ZeroDivisionError


def test_a_caller_that_breaks_down_is_not_taken_for_one_that_found_nothing() -> None:
    with pytest.raises(ZeroDivisionError), running([Broken("", 1, 1.0, 0)]):
        pass

"""Counts of versions survive nodes that come and go, and a canary is judged by them alone."""

from __future__ import annotations

import math

import pytest

from adapter_store.arms import ArmCount, Bounds, Watch, breaches, decode_arms, encode_arms, enough
from tests.adapter_store.fleet_cards import digest

V1, V2 = digest("v1"), digest("v2")
BOUNDS = Bounds(max_failed=0.02, max_slower=1.5, max_longer=2.0, min_answers=50)
GOOD = ArmCount(completed=1000, tokens=20_000, seconds=400.0)
"""20 tokens an answer, 20 ms a token."""


def count(
    completed: int = 100, *, failed: int = 0, late: int = 0, tokens: int = 20, pace: float = 0.02
) -> ArmCount:
    return ArmCount(completed, failed, late, completed * tokens, completed * tokens * pace)


def test_counts_are_read_as_they_were_told_and_rubbish_is_nothing() -> None:
    arms = {V1: GOOD, V2: count(failed=3, late=2)}
    assert decode_arms(encode_arms(arms)) == arms
    for text in ("", "[]", "{}", '{"x": [1,2,3,4,5]}', f'{{"{V1}": [1,2,3,4]}}', "[" * 100_000):
        assert decode_arms(text) == {}
    for spoilt in ("-1,0,0,0,0", "true,0,0,0,0", "1.5,0,0,0,0", "0,0,0,0,NaN", "0,0,0,0,-1"):
        assert decode_arms(f'{{"{V1}": [{spoilt}]}}') == {}, spoilt


def test_a_watch_sums_what_came_since_it_began_whatever_nodes_do() -> None:
    watch = Watch()
    watch.take({"old": {V1: count(100)}})
    assert watch.of(V1) == ArmCount()
    watch.take({"old": {V1: count(110)}, "new": {V1: count(5), V2: count(1)}})
    watch.take({"new": {V1: count(6), V2: count(2)}})
    assert watch.of(V1).completed == 16, "the node that left is not forgotten, nor counted twice"
    assert watch.of(V2).completed == 2


def test_a_node_that_forgot_a_version_and_counts_anew_takes_nothing_from_the_sum() -> None:
    watch = Watch()
    watch.take({"node": {V1: count(1000), V2: count(3)}})
    watch.take({"node": {V1: count(1010), V2: count(4, failed=6)}})
    watch.take({"node": {V1: count(1), V2: count(0, failed=2)}})
    watch.take({})
    watch.take({"node": {V1: count(5)}})
    assert watch.of(V1).completed == 10 + 5
    assert (watch.of(V2).completed, watch.of(V2).failed) == (1, 6 + 2)


def test_a_canary_that_does_as_well_as_the_others_breaks_nothing() -> None:
    assert breaches(GOOD, count(), BOUNDS) == []
    assert enough(GOOD, count(), BOUNDS)


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        (count(95, failed=5), "5 of 100 requests failed"),
        (count(95, late=5), "5 of 100 requests failed"),
        (count(pace=0.04), "seconds a token"),
        (count(tokens=50), "tokens an answer"),
    ],
)
def test_a_canary_that_fails_or_is_slow_or_talks_on_breaks_its_bound(
    canary: ArmCount, why: str
) -> None:
    (broken,) = breaches(GOOD, canary, BOUNDS)
    assert why in broken


def test_a_canary_that_answers_nobody_is_not_given_fifty_callers_first() -> None:
    assert breaches(GOOD, ArmCount(failed=1), BOUNDS) == []
    assert breaches(GOOD, ArmCount(failed=2), BOUNDS)


def test_what_fails_everywhere_is_not_the_canarys_fault() -> None:
    outage = count(80, failed=20)
    assert breaches(outage, count(80, failed=20), BOUNDS) == []
    assert breaches(outage, count(60, failed=40), BOUNDS)


def test_means_are_not_compared_before_enough_has_ended() -> None:
    assert breaches(GOOD, count(40, pace=1.0), BOUNDS) == []
    assert breaches(count(40), count(100, pace=1.0), BOUNDS) == []
    assert not enough(count(40), count(100), BOUNDS)
    assert math.isnan(ArmCount().token_seconds)
    assert breaches(ArmCount(), ArmCount(), Bounds(min_answers=0)) == []

"""Tenants and adapters share fairly, nobody is starved by numbers or by rank."""

from __future__ import annotations

import sys
from collections.abc import Sequence as Rows
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_node.engine import fairness as fairness_module
from inference_node.engine.fairness import Fairness, TokenCounters
from inference_node.engine.sequence import Phase, Sequence
from tests.inference_node.engine.traffic import Flow, traffic_on

TENANTS: tuple[Flow, Flow] = (("a", "x"), ("b", "x"))
ADAPTERS: tuple[Flow, Flow] = (("t", "x"), ("t", "y"))
ROWS, LONGEST_PROMPT, LONGEST_ANSWER = 8, 40, 40
BACKLOG = 17
"""More in line than one step can let in."""
VTC_BOUND = 2 * max(LONGEST_PROMPT, 2 * ROWS * LONGEST_ANSWER)
"""Theorem 4.4 of VTC: 2 max(w_p L_input, w_q M), M the tokens that all rows may yet draw."""


def first_come_first_served(self: Fairness) -> Sequence | None:
    line = [s for of in self._classes.values() for line in of.lines.values() for s in line]
    return min(line, key=lambda s: s.order, default=None)


def nobody(self: Fairness, head: Sequence, running: Rows[Sequence]) -> Rows[Sequence]:
    return ()


def spread(flows: tuple[Flow, Flow], seed: int, *, blocks: int, steps: int = 300) -> float:
    """How far two backlogged flows drift apart, over every interval, the first one flooding."""
    random = Random(seed)
    traffic = traffic_on(rows=ROWS, blocks=blocks)
    longest = {
        flow: (random.randint(1, LONGEST_PROMPT), random.randint(1, LONGEST_ANSWER))
        for flow in flows
    }

    def feed(flow: Flow, depth: int) -> None:
        while traffic.waiting(flow) < depth:
            prompt, answer = (random.randint(1, most) for most in longest[flow])
            traffic.send(flow, prompt=prompt, answer=answer)

    feed(flows[0], 100)
    traffic.step(20)
    feed(flows[1], BACKLOG)
    gaps = []
    for _ in range(steps):
        gaps.append(traffic.served[flows[0]] - traffic.served[flows[1]])
        traffic.step()
        for flow in flows:
            feed(flow, BACKLOG)
    return max(gaps) - min(gaps)


@pytest.mark.parametrize("flows", [TENANTS, ADAPTERS], ids=["tenants", "adapters"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from([32, 160]))
def test_what_two_backlogged_flows_are_served_differs_by_no_more_than_the_vtc_bound(
    flows: tuple[Flow, Flow], seed: int, blocks: int
) -> None:
    """With room for all rows in the KV cache, and with so little that they push each other out."""
    assert spread(flows, seed, blocks=blocks) <= VTC_BOUND


@pytest.mark.parametrize("flows", [TENANTS, ADAPTERS], ids=["tenants", "adapters"])
def test_control_first_come_first_served_breaks_the_vtc_bound(
    flows: tuple[Flow, Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fairness, "next", first_come_first_served)
    assert spread(flows, seed=1, blocks=160) > VTC_BOUND


def steps_to_first_token(
    flood: int, *, answer: int, flows: tuple[Flow, Flow], lag_tokens: int = 256
) -> int:
    """How long one request waits that comes when another flow has `flood` requests in line."""
    traffic = traffic_on(Fairness(lag_tokens=lag_tokens))
    for _ in range(flood):
        traffic.send(flows[0], prompt=12, answer=answer)
    traffic.step(30)
    late = traffic.send(flows[1], prompt=12)
    before = traffic.steps
    while late.order not in traffic.first_token and traffic.steps < before + 3000:
        traffic.step()
    return traffic.first_token.get(late.order, traffic.steps) - before


@pytest.mark.parametrize("flows", [TENANTS, ADAPTERS], ids=["tenants", "adapters"])
@pytest.mark.parametrize("flood", [20, 400])
@pytest.mark.parametrize("answer", [20, 2000])
def test_a_flood_delays_anothers_first_token_by_no_more_than_the_lag_allowed(
    flows: tuple[Flow, Flow], flood: int, answer: int
) -> None:
    rows, drawn = 8, 2
    assert steps_to_first_token(flood, answer=answer, flows=flows) <= 256 // (rows * drawn) + 4


def test_control_first_come_first_served_lets_a_flood_delay_anothers_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fairness, "next", first_come_first_served)
    short = steps_to_first_token(20, answer=20, flows=TENANTS)
    assert steps_to_first_token(400, answer=20, flows=TENANTS) > 10 * short


def test_control_if_nobody_makes_way_long_answers_delay_anothers_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fairness, "must_yield", nobody)
    assert steps_to_first_token(20, answer=2000, flows=TENANTS) > 1000


def test_rows_come_to_be_shared_and_stay_so_without_pushing_each_other_out() -> None:
    traffic = traffic_on(Fairness(lag_tokens=256))
    first, second = TENANTS
    for flow in (first, second):
        for _ in range(20):
            traffic.send(flow, answer=3000)
    traffic.step(400)
    assert (traffic.rows(first), traffic.rows(second)) == (4, 4)
    running = traffic.scheduler.running
    traffic.step(400)
    assert traffic.scheduler.running == running


def test_weights_say_what_each_tenants_share_is() -> None:
    traffic = traffic_on(Fairness(weights={"gold": 3.0}, lag_tokens=512))
    flows: list[Flow] = [("gold", "x"), ("plain", "x")]
    for _ in range(400):
        for flow in flows:
            traffic.send(flow, prompt=6, answer=10)
    traffic.step(300)
    assert traffic.served[flows[0]] / traffic.served[flows[1]] == pytest.approx(3.0, rel=0.1)


def back_from_idling() -> float:
    """What a busy tenant still gets, as a share, once one comes that had long been idle."""
    traffic = traffic_on()
    busy, idle = TENANTS
    traffic.send(idle, answer=2)
    traffic.step(10)
    for _ in range(600):
        traffic.send(busy, answer=6)
    traffic.step(300)
    before = traffic.served[busy]
    for _ in range(200):
        traffic.send(idle, answer=6)
    start = traffic.served[idle]
    traffic.step(60)
    got, other = traffic.served[busy] - before, traffic.served[idle] - start
    return got / (got + other)


def test_a_tenant_that_was_idle_has_saved_nothing_up() -> None:
    assert back_from_idling() == pytest.approx(0.5, abs=0.1)


def test_control_without_the_lift_an_idle_tenant_comes_back_and_takes_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lift = TokenCounters._lift

    def join_only(self: TokenCounters, key: str) -> None:
        had = self._served.get(key, 0.0)
        lift(self, key)
        self._served[key] = had
        self._heap.append((had, self._issued, key))
        self._heap.sort()

    monkeypatch.setattr(TokenCounters, "_lift", join_only)
    assert back_from_idling() < 0.2


def test_a_higher_priority_goes_first_and_takes_a_row_from_a_lower_one() -> None:
    traffic = traffic_on(rows=4)
    low = [traffic.send(("a", "x"), answer=40) for _ in range(12)]
    traffic.step(8)
    high = traffic.send(("a", "x"), answer=4, priority=5)
    traffic.step()
    assert traffic.first_token[high.order] == 9
    assert sum(sequence.phase is Phase.RUNNING for sequence in low) == 3
    traffic.step(300)
    assert len(traffic.ended) == 13


def steps_behind_a_higher_class(aging_steps: int, limit: int) -> int:
    """When a request ends that endless requests of a higher priority keep from running."""
    traffic = traffic_on(Fairness(aging_steps=aging_steps), rows=4)
    low = traffic.send(("a", "x"), answer=30)
    while low.order not in traffic.ended and traffic.steps < limit:
        while traffic.waiting(("b", "x")) < 6:
            traffic.send(("b", "x"), answer=12, priority=3)
        traffic.step()
    return traffic.ended.get(low.order, limit)


def test_age_lets_the_lowest_priority_through_and_those_it_overtook_do_not_push_it_out() -> None:
    aging, priority, answer = 20, 3, 30
    assert steps_behind_a_higher_class(aging, 2000) <= (priority + 1) * aging + answer + 12


def test_control_without_aging_the_lowest_priority_starves() -> None:
    assert steps_behind_a_higher_class(10**9, 2000) == 2000


def test_age_lifts_a_class_and_not_the_flood_within_it() -> None:
    """Requests that have long been in line do not thereby go before another tenant's new one."""
    traffic = traffic_on(Fairness(aging_steps=4))
    for _ in range(300):
        traffic.send(("a", "x"), answer=10)
    traffic.step(100)
    late = traffic.send(("b", "x"))
    traffic.step(12)
    assert late.order in traffic.first_token


def test_a_preempted_request_does_not_pay_for_its_prompt_again() -> None:
    fairness = Fairness()
    traffic = traffic_on(fairness, blocks=8, block_tokens=4)
    one = traffic.send(("a", "x"), prompt=14, answer=14)
    two = traffic.send(("b", "x"), prompt=14, answer=14)
    phases = set()
    while len(traffic.ended) < 2:
        traffic.step()
        phases.add((one.phase, two.phase))
    assert any(Phase.WAITING in pair and Phase.RUNNING in pair for pair in phases)
    counters = fairness._classes[0].tenants
    assert counters.served("a") == 14 + 2 * 14
    assert counters.served("b") <= counters.served("a") + 14 + 2 * 14


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("jlc"), st.sampled_from("pqrs"), st.integers(1, 9))))
def test_the_least_served_key_in_line_is_found_whatever_joins_leaves_and_is_charged(
    steps: list[tuple[str, str, int]],
) -> None:
    counters = TokenCounters({"p": 2.0})
    line: list[str] = []
    for what, key, tokens in steps:
        if what == "j":
            floor = min((counters.served(other) for other in line), default=0.0)
            counters.join(key)
            line.append(key)
            assert counters.served(key) >= floor
        elif what == "l" and key in line:
            counters.leave(key)
            line.remove(key)
        elif what == "c":
            before = counters.served(key)
            counters.charge(key, tokens)
            assert counters.served(key) == before + tokens / (2 if key == "p" else 1)
        least = counters.least()
        assert (least is None) == (not line)
        if least is not None:
            assert least in line
            assert counters.served(least) == min(map(counters.served, line))


def test_tenants_that_are_gone_are_forgotten() -> None:
    counters = TokenCounters()
    for index in range(10 * fairness_module._KEPT):
        counters.join(f"tenant {index}")
        counters.charge(f"tenant {index}", 1)
        counters.leave(f"tenant {index}")
    assert len(counters._served) <= 2 * fairness_module._KEPT + 1
    assert len(counters._heap) <= 2 * fairness_module._KEPT


def calls_to_plan_a_step(waiting: int) -> int:
    """Python and C functions called to plan a step of 64 rows with `waiting` more in line."""
    traffic = traffic_on(rows=64, step_tokens=512)
    for index in range(64 + waiting):
        traffic.send((f"t{index % 40}", f"x{index % 7}"), prompt=8, answer=500)
    traffic.step(5)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        step = traffic.scheduler.schedule()
    finally:
        sys.setprofile(None)
    assert step is not None
    assert len(step.work) == 64
    return calls


def test_planning_a_step_takes_some_calls_for_each_row_and_none_for_those_in_line() -> None:
    """About 0.1 ms; counted, since time depends on the machine."""
    assert calls_to_plan_a_step(0) <= 64 * 60
    assert calls_to_plan_a_step(4000) <= 64 * 60

"""What failed is left alone for a time that doubles, is spread, and keeps its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_node.adapters import backoff as backoff_module
from inference_node.adapters.backoff import Backoff, Delays

DELAYS = Delays(first=1.0, longest=60.0)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_every_delay_keeps_its_bounds_and_stays_within_a_quarter_of_twice_the_last(
    failures: int, jitter: float
) -> None:
    delay = DELAYS.after(failures, jitter=jitter)
    assert 1.0 <= delay <= 60.0
    plain = min(60.0, 2.0 ** min(failures - 1, 10))
    assert 0.75 * plain <= delay <= max(1.0, 1.25 * plain)


def test_delays_are_spread_so_that_many_nodes_do_not_come_back_at_once() -> None:
    spread = {DELAYS.after(4, jitter=step / 10) for step in range(11)}
    assert (min(spread), max(spread)) == (6.0, 10.0)
    assert len(spread) == 11


def test_failures_in_a_row_count_and_a_success_ends_the_row() -> None:
    now = [0.0]
    failing: Backoff[str] = Backoff(DELAYS, clock=lambda: now[0], random=lambda: 0.5)
    error = RuntimeError("passing")
    assert [failing.failed("a", error) for _ in range(3)] == [1.0, 2.0, 4.0]
    assert failing.error("a") is error
    assert failing.error("b") is None
    now[0] = 4.0
    assert failing.error("a") is None, "it may be tried again"
    assert failing.failures("a") == 3
    failing.succeeded("a")
    assert failing.failed("a", error) == 5.0


def test_no_more_failures_are_remembered_than_the_bound() -> None:
    failing: Backoff[int] = Backoff(DELAYS, clock=lambda: 0.0, random=lambda: 0.5)
    for key in range(backoff_module.REMEMBERED + 50):
        failing.failed(key, RuntimeError("passing"))
    assert len(failing._failed) == backoff_module.REMEMBERED
    assert failing.failures(0) == 0

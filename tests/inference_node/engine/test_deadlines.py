"""A request whose time is up is told so, and from then on costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_node.adapters.loader import Loader
from inference_node.engine.deadlines import _SLACK, Deadlines
from inference_node.engine.loop import EngineLoop
from inference_node.engine.runner import Drawn, Runner
from inference_node.engine.scheduler import Step
from inference_node.engine.sequence import Phase
from inference_node.errors import DeadlineExpired, NodeError
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.sequences import make_sequence
from tests.inference_node.harness import Node
from tests.inference_node.tiny import make_adapter


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 50)), st.booleans()), max_size=200))
def test_each_request_that_has_not_ended_is_told_of_once_when_its_time_is_up(
    requests: list[tuple[int | None, bool]],
) -> None:
    deadlines = Deadlines()
    running = []
    for order, (deadline, ends) in enumerate(requests):
        sequence = make_sequence(order=order, deadline=deadline)
        deadlines.add(sequence)
        if ends:
            sequence.phase = Phase.DONE
        elif deadline is not None:
            running.append(sequence)
    told = []
    for now in (10, 10, 30, 60):
        left = [float(s.request.deadline or 0) for s in running if s not in told]
        assert deadlines.soonest() == min(left, default=None)
        told += deadlines.passed(now)
        assert all((s.request.deadline or 0) <= now for s in told)
        assert len(told) == sum((s.request.deadline or 0) <= now for s in running)
    assert sorted(s.order for s in told) == [s.order for s in running]


def test_requests_that_ended_long_before_their_deadline_are_not_remembered() -> None:
    deadlines = Deadlines()
    for order in range(20 * _SLACK):
        sequence = make_sequence(order=order, deadline=600.0)
        deadlines.add(sequence)
        sequence.phase = Phase.DONE
    assert len(deadlines._heap) <= 2 * _SLACK + 2


class Spies:
    """What was looked up in the store, and who was in a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resolved: list[str] = []
        self.ran: set[str] = set()
        resolve, run = Loader.resolve, Runner.run

        def spy_resolve(loader: Loader, token: str, *rest: object, trace: object) -> None:
            self.resolved.append(token.partition("#")[0])
            resolve(loader, token, *rest, trace=trace)  # type: ignore[arg-type]

        def spy_run(runner: Runner, step: Step) -> list[Drawn]:
            self.ran |= {item.sequence.request.request_id for item in step.work}
            return run(runner, step)

        monkeypatch.setattr(Loader, "resolve", spy_resolve)
        monkeypatch.setattr(Runner, "run", spy_run)


def late_on_arrival(node: Node, folder: Path) -> NodeError:
    node.publish("a", make_adapter(folder, dict(node.card.modules), rank=8))
    return node.ask("a", deadline_in=-0.01, request_id="late").wait().error


def test_a_request_that_comes_too_late_is_not_even_looked_up(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies = Spies(monkeypatch)
    node = start_tiny()
    assert isinstance(late_on_arrival(node, tmp_path), DeadlineExpired)
    assert "late" not in [*spies.resolved, *spies.ran]
    node.settle()


def test_a_request_whose_time_runs_out_in_line_never_gets_a_step(
    start_tiny: StartTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies = Spies(monkeypatch)
    node = start_tiny(max_rows=1, fair_lag_tokens=10**6)
    long = node.ask(tokens=400).wait(tokens=2)
    late = node.ask(deadline_in=0.1, request_id="late")
    assert isinstance(late.error, DeadlineExpired)
    assert not long.ended
    assert "late" not in spies.ran
    node.ask(request_id="in time").wait()
    assert "in time" in spies.ran


def test_control_without_a_look_at_the_clock_late_requests_cost_lookups_and_steps(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineLoop, "_expire", lambda self: None)
    spies = Spies(monkeypatch)
    node = start_tiny()
    node.publish("a", make_adapter(tmp_path, dict(node.card.modules), rank=8))
    node.ask("a", deadline_in=-0.01, request_id="late").wait()
    assert "late" in spies.resolved
    assert "late" in spies.ran

"""Whatever arrives in whatever order, every request ends, blocks add up and nobody starves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase as Stage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from inference_node.engine.fairness import Fairness
from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.prefix import PrefixNames
from inference_node.engine.scheduler import Scheduler, Step
from inference_node.engine.sequence import Phase, Sequence
from tests.inference_node.engine.kv_content import KvContent
from tests.inference_node.engine.sequences import make_sequence

BLOCKS, BLOCK_TOKENS = 8, 4
ROOM = BLOCKS * BLOCK_TOKENS
PROMPTS = st.tuples(st.sampled_from([1, 3, 4, 5, 8, 12, 13, 16, 20]), st.booleans()).map(
    lambda drawn: (int(drawn[1]), *range(1, drawn[0]))
)
"""Prompts that share their tokens, except for the first one."""
ANSWERS = st.integers(1, ROOM - 20)
FLOWS = st.tuples(
    st.sampled_from([0, 0, 0, 1, -2]),
    st.sampled_from(["t", "u", "heavy"]),
    st.sampled_from(["a", "b", ""]),
)
"""Priority, tenant, adapter."""

QUICK = settings(
    max_examples=1000,
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[Stage.generate],
    report_multiple_bugs=False,
    print_blob=False,
)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, go and grow; the steps are checked against what they promise."""

    @initialize(
        rows=st.integers(1, 4),
        extra=st.integers(0, 12),
        lag=st.sampled_from([4, 64, 999]),
        shared=st.booleans(),
    )
    def open(self, rows: int, extra: int, lag: int, shared: bool) -> None:
        self.rows, self.budget = rows, rows + extra
        self.scheduler = Scheduler(
            BlockAllocator(BLOCKS, block_tokens=BLOCK_TOKENS),
            max_rows=rows,
            step_tokens=self.budget,
            fairness=Fairness(weights={"heavy": 3.0}, lag_tokens=lag, aging_steps=4),
            prefixes=PrefixNames("base", block_tokens=BLOCK_TOKENS) if shared else None,
        )
        self.content = KvContent(block_tokens=BLOCK_TOKENS)
        self.goals: dict[Sequence, int] = {}
        self.orders = 0
        self.skipped: list[int] = []

    @rule(prompt=PROMPTS, answer=ANSWERS, whose=FLOWS, late=st.booleans())
    def add(
        self, prompt: tuple[int, ...], answer: int, whose: tuple[int, str, str], late: bool
    ) -> None:
        """`late`: accepted now, but its adapter is ready only after younger requests."""
        order = self.orders
        self.orders += 1
        if late:
            self.skipped.append(order)
            return
        self.join(order, prompt, answer, whose)

    @precondition(lambda self: self.skipped)
    @rule(prompt=PROMPTS, answer=ANSWERS, whose=FLOWS)
    def add_late(self, prompt: tuple[int, ...], answer: int, whose: tuple[int, str, str]) -> None:
        self.join(self.skipped.pop(0), prompt, answer, whose)

    def join(
        self, order: int, prompt: tuple[int, ...], answer: int, whose: tuple[int, str, str]
    ) -> None:
        priority, tenant, adapter = whose
        sequence = make_sequence(
            prompt, order=order, priority=priority, tenant=tenant, adapter=adapter
        )
        self.goals[sequence] = len(prompt) + answer
        self.scheduler.add(sequence)

    @precondition(lambda self: self.goals)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.goals, key=lambda s: s.order)))
        self.end(gone)
        self.scheduler.remove(gone)

    def end(self, sequence: Sequence) -> None:
        del self.goals[sequence]
        self.scheduler.remove(sequence)
        assert sequence.block_table == []

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        before = self.scheduler.running
        decoding = [s for s in before if s.pending == 1]
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if step is None:
            assert self.scheduler.idle, "requests wait although something could run"
            return
        self.check(step, decoding)
        let_in = set(self.scheduler.running) - set(before)
        if before and not let_in:
            assert before[0].phase is Phase.RUNNING, "the first place gave way and nobody took it"
        for sequence in self.content.run(step):
            sequence.tokens.append(1)
        self.scheduler.ran(step)
        self.scheduler.check_integrity()
        for item in step.work:
            if len(item.sequence.tokens) >= self.goals[item.sequence]:
                self.end(item.sequence)

    def check(self, step: Step, decoding: list[Sequence]) -> None:
        lengths = [item.length for item in step.work]
        assert lengths
        assert sum(lengths) <= self.budget
        assert all(length > 0 for length in lengths)
        singles = sum(length == 1 for length in lengths)
        assert all(length == 1 for length in lengths[:singles]), "single-token work comes first"
        chosen = [item.sequence for item in step.work]
        assert len(set(map(id, chosen))) == len(chosen), "a request occurs twice in a step"
        for item in step.work:
            assert item.sequence.phase is Phase.RUNNING
            assert item.length <= item.sequence.pending
            reach = item.sequence.cached + item.length
            assert len(item.sequence.block_table) >= -(-reach // BLOCK_TOKENS)
        for sequence in decoding:
            kept = sequence.phase is Phase.RUNNING
            assert sequence in chosen or not kept, "a running request got no token"

    @invariant()
    def books_add_up(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert len(self.scheduler.running) <= self.rows
            held = [*self.scheduler.running, *self.scheduler.waiting]
            assert sorted(map(id, held)) == sorted(map(id, self.goals))
            waiting = self.scheduler.waiting
            assert all(s.cached == 0 for s in waiting), "tokens are cached without blocks"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        bound = 2 * sum(self.goals.values()) + len(self.goals)
        while self.goals and bound:
            self.step()
            bound -= 1
        assert not self.goals, "a request never ends"
        assert self.scheduler.idle
        assert self.scheduler.blocks.free == BLOCKS


class AheadMachine(SchedulerMachine):
    """Steps of next tokens alone are on their way while the one after them is scheduled.

    Every answer ends by a token that nobody foresees.
    """

    flight: Step | None = None

    def step(self) -> None:
        before = [s for s in self.scheduler.running if s.pending == 1]
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if step is not None:
            self.check(step, before)
        flight, self.flight = self.flight, None
        assert step or flight or self.scheduler.idle, "requests wait although something could run"
        if step is not None and all(item.length == 1 and item.samples for item in step.work):
            self.launch(step)
            self.land(flight)
            return
        self.land(flight)
        left = [item for item in step.work if item.sequence in self.goals] if step else []
        if left:
            self.launch(Step(tuple(left)))
            self.land(self.flight)
            self.flight = None

    def launch(self, step: Step) -> None:
        for sequence in self.content.run(step):
            sequence.unread += 1
            own = self.content.drawn.setdefault(sequence, [])
            own.append((len(sequence.tokens) + len(own)) % 3)
        self.flight = step

    def land(self, flight: Step | None) -> None:
        if flight is None:
            return
        self.scheduler.ran(flight)
        for item in flight.work:
            sequence = item.sequence
            if sequence.unread and self.content.drawn[sequence]:
                sequence.unread -= 1
                token = self.content.drawn[sequence].pop(0)
                if sequence in self.goals:
                    sequence.tokens.append(token)
                    if len(sequence.tokens) >= self.goals[sequence]:
                        self.end(sequence)
        self.scheduler.check_integrity()


def test_a_scheduler_that_runs_ahead_of_the_tokens_starves_nobody_and_names_what_is_there() -> None:
    run_state_machine_as_test(
        AheadMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


def test_no_order_of_arrivals_and_steps_starves_a_request_or_loses_a_block() -> None:
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None)
    )


def keep_the_blocks(self: Scheduler, sequence: Sequence) -> None:
    sequence.block_table = []
    sequence.cached = 0


def free_but_keep_the_table(self: Scheduler, sequence: Sequence) -> None:
    self.blocks.release(sequence.block_table)
    sequence.cached = 0


def forget_what_is_cached(self: Scheduler, sequence: Sequence) -> None:
    self.blocks.release(sequence.block_table)
    sequence.block_table = []


def take_one_block_too_few(self: Scheduler, sequence: Sequence, length: int) -> None:
    missing = self._missing(sequence, length)
    if missing > 1:
        sequence.block_table.extend(self.blocks.allocate(missing - 1))


def preempt_the_oldest(self: Scheduler, sequence: Sequence, length: int) -> bool:
    while not self._fits(sequence, length):
        victim = self._running[0]
        self._preempt(victim)
        if victim is sequence:
            return False
    self._take(sequence, length)
    return True


def drop_the_victim(self: Scheduler, victim: Sequence) -> None:
    self._running.remove(victim)
    self._free(victim)


def root_without_the_version(self: PrefixNames, sequence: Sequence) -> bytes:
    return sequence.request.tenant.encode()


def root_without_the_tenant(self: PrefixNames, sequence: Sequence) -> bytes:
    # Versions are told apart by their digest, which content shared between tenants has in common.
    return b"" if sequence.entry is None else sequence.entry.adapter.encode()


def all_blocks_of_the_prompt(self: PrefixNames, sequence: Sequence) -> list[bytes]:
    return self.of(sequence, len(sequence.tokens) // BLOCK_TOKENS)


def names_of_each_block_alone(self: PrefixNames, sequence: Sequence, blocks: int) -> list[bytes]:
    cut = range(0, blocks * BLOCK_TOKENS, BLOCK_TOKENS)
    return [self.root(sequence) + bytes(sequence.tokens[at : at + BLOCK_TOKENS]) for at in cut]


def release_whoever_holds(self: BlockAllocator, blocks: list[int]) -> None:
    for block in blocks:
        self._holders[block] = 0
        self._blank.append(block)


def name_before_it_is_full(self: Scheduler, step: Step) -> None:
    assert self._prefixes is not None
    for item in step.work:
        sequence = item.sequence
        full = len(sequence.tokens) // BLOCK_TOKENS
        for index, name in enumerate(self._prefixes.of(sequence, full)):
            if index < len(sequence.block_table):
                self.blocks.name(sequence.block_table[index], name)


def name_what_is_on_its_way(self: Scheduler, step: Step) -> None:
    assert self._prefixes is not None
    for item in step.work:
        sequence = item.sequence
        full = sequence.cached // BLOCK_TOKENS
        names = self._prefixes.of(sequence, full)
        for index in range(sequence.named, full):
            self.blocks.name(sequence.block_table[index], names[index])


@pytest.mark.parametrize(
    ("owner", "method", "bug"),
    [
        (Scheduler, "_free", keep_the_blocks),
        (Scheduler, "_free", free_but_keep_the_table),
        (Scheduler, "_free", forget_what_is_cached),
        (Scheduler, "_take", take_one_block_too_few),
        (Scheduler, "_reserve", preempt_the_oldest),
        (Scheduler, "_preempt", drop_the_victim),
        (Scheduler, "ran", name_before_it_is_full),
        (PrefixNames, "root", root_without_the_version),
        (PrefixNames, "root", root_without_the_tenant),
        (PrefixNames, "reusable", all_blocks_of_the_prompt),
        (PrefixNames, "of", names_of_each_block_alone),
        (BlockAllocator, "release", release_whoever_holds),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_control_the_machine_catches_a_seeded_bug(
    owner: type, method: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, bug)
    with pytest.raises((AssertionError, ValueError)):
        run_state_machine_as_test(SchedulerMachine, settings=QUICK)


def test_control_the_machine_that_runs_ahead_sees_a_name_for_what_is_not_known_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scheduler, "ran", name_what_is_on_its_way)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(AheadMachine, settings=QUICK)

"""Whose turn it is in a step, how much of it each request gets, and who gives way."""

from __future__ import annotations

import pytest

from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.prefix import PrefixNames
from inference_node.engine.scheduler import Scheduler, Step, Work
from inference_node.engine.sequence import Phase
from tests.inference_node.engine.kv_content import KvContent
from tests.inference_node.engine.sequences import make_sequence

BLOCK_TOKENS = 4


def scheduler_of(*, blocks: int = 12, max_rows: int = 8, step_tokens: int = 16) -> Scheduler:
    allocator = BlockAllocator(blocks, block_tokens=BLOCK_TOKENS)
    return Scheduler(allocator, max_rows=max_rows, step_tokens=step_tokens)


def lengths(step: Step | None) -> list[tuple[int, int]]:
    """(order, tokens) of each request in a step."""
    assert step is not None
    return [(item.sequence.order, item.length) for item in step.work]


def turn(scheduler: Scheduler) -> list[tuple[int, int]]:
    step = scheduler.schedule()
    found = lengths(step)
    assert step is not None
    due = [item.sequence for item in step.work if item.samples]
    for item in step.work:
        item.sequence.cached += item.length
    for sequence in due:
        sequence.tokens.append(1)
    return found


def test_nothing_to_do_is_no_step() -> None:
    scheduler = scheduler_of()
    assert scheduler.idle
    assert scheduler.schedule() is None


def test_a_long_prompt_is_read_in_chunks_of_the_steps_budget() -> None:
    scheduler = scheduler_of()
    scheduler.add(make_sequence(37))
    assert [turn(scheduler) for _ in range(4)] == [[(0, 16)], [(0, 16)], [(0, 5)], [(0, 1)]]


def test_only_the_last_chunk_of_a_prompt_draws_a_token() -> None:
    sequence = make_sequence(20)
    assert not Work(sequence, 16).samples
    sequence.cached = 16
    assert Work(sequence, 4).samples


def test_running_requests_get_their_token_before_a_prompt_gets_the_rest() -> None:
    scheduler = scheduler_of()
    scheduler.add(make_sequence(4, order=0))
    turn(scheduler)
    scheduler.add(make_sequence(30, order=1))
    assert turn(scheduler) == [(0, 1), (1, 15)]
    assert turn(scheduler) == [(0, 1), (1, 15)]
    assert turn(scheduler) == [(0, 1), (1, 1)]


def test_running_requests_get_their_token_beside_an_older_prompt_that_came_ready_later() -> None:
    scheduler = scheduler_of()
    scheduler.add(make_sequence(4, order=1))
    turn(scheduler)
    scheduler.add(make_sequence(40, order=0))
    turn(scheduler)
    assert turn(scheduler) == [(1, 1), (0, 15)]


def test_requests_run_in_the_order_they_were_accepted_not_became_ready() -> None:
    scheduler = scheduler_of(max_rows=1)
    for order in (2, 0, 1):
        scheduler.add(make_sequence(4, order=order))
    assert turn(scheduler) == [(0, 4)]
    scheduler.remove(scheduler.running[0])
    assert turn(scheduler) == [(1, 4)]


def test_a_large_request_is_not_overtaken_by_small_ones_behind_it() -> None:
    scheduler = scheduler_of(blocks=6)
    scheduler.add(make_sequence(12, order=0))
    turn(scheduler)
    scheduler.add(make_sequence(16, order=1))
    scheduler.add(make_sequence(1, order=2))
    assert turn(scheduler) == [(0, 1)]
    scheduler.remove(scheduler.running[0])
    assert turn(scheduler) == [(1, 16)]
    assert turn(scheduler) == [(1, 1), (2, 1)]


def test_the_request_that_came_last_gives_its_blocks_up_and_starts_over() -> None:
    scheduler = scheduler_of(blocks=4)
    old, young = make_sequence(8, order=0), make_sequence(8, order=1)
    for sequence in (old, young):
        scheduler.add(sequence)
    turn(scheduler)
    assert turn(scheduler) == [(0, 1)]
    assert young.phase is Phase.WAITING
    assert (young.cached, young.block_table) == (0, [])
    assert len(young.tokens) == 9
    scheduler.remove(old)
    assert turn(scheduler) == [(1, 9)]


def test_removing_a_request_that_is_not_here_changes_nothing() -> None:
    scheduler = scheduler_of()
    scheduler.add(make_sequence(4, order=0))
    turn(scheduler)
    scheduler.remove(make_sequence(4, order=9))
    scheduler.check_integrity()
    assert [s.order for s in scheduler.running] == [0]


def steps_beside_a_long_prompt() -> tuple[list[int], list[int]]:
    """Six answers run when a long prompt comes: by step, those that got a token, and all tokens."""
    scheduler = scheduler_of(blocks=400, max_rows=8, step_tokens=16)
    answers = [make_sequence(1, order=order) for order in range(6)]
    for sequence in answers:
        scheduler.add(sequence)
    turn(scheduler)
    prompt = make_sequence(500, order=6)
    scheduler.add(prompt)
    rows, tokens = [], []
    while not prompt.produced:
        found = turn(scheduler)
        rows.append(sum(order < 6 for order, _ in found))
        tokens.append(sum(length for _, length in found))
    return rows, tokens


def test_a_long_prompt_takes_no_token_from_an_answer_and_no_step_beyond_its_budget() -> None:
    rows, tokens = steps_beside_a_long_prompt()
    assert rows == [6] * len(rows)
    assert max(tokens) <= 16
    assert len(rows) == -(-500 // (16 - 6)), "and reads with all that is left of each step"


def prompts_before_next_tokens(self: Scheduler) -> Step | None:
    chosen: list[Work] = []
    self._read_prompts(self._step_tokens, chosen)
    given = {item.sequence for item in chosen}
    budget = self._step_tokens - sum(item.length for item in chosen)
    for sequence in [s for s in self._running if s not in given][:budget]:
        self._give(sequence, 1, chosen)
    return Step(tuple(chosen))


def test_control_prompts_before_next_tokens_starve_the_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scheduler, "schedule", prompts_before_next_tokens)
    rows, _ = steps_beside_a_long_prompt()
    assert min(rows) == 0


def test_a_request_that_needs_its_whole_prompt_computed_takes_nothing_from_the_cache() -> None:
    allocator = BlockAllocator(12, block_tokens=BLOCK_TOKENS)
    names = PrefixNames("base", block_tokens=BLOCK_TOKENS)
    scheduler = Scheduler(allocator, max_rows=4, step_tokens=32, prefixes=names)
    content = KvContent(block_tokens=BLOCK_TOKENS)
    read = []
    for order, whole in enumerate((False, False, True)):
        sequence = make_sequence(12, order=order)
        sequence.whole_prompt = whole
        scheduler.add(sequence)
        step = scheduler.schedule()
        assert step is not None
        content.run(step)
        scheduler.ran(step)
        read.append(step.work[0].length)
        scheduler.remove(sequence)
    assert read == [12, 4, 12]

"""Steps that decode on from the one before read what they would, had all been written anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from inference_node.engine.runner import Runner
from inference_node.engine.scheduler import Step, Work
from inference_node.engine.steady import Steady, Written
from inference_node.kernels.paged_attention import AttentionPlan, Chunk
from inference_node.model.batch import ForwardBatch
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.sequences import make_sequence
from tests.inference_node.tiny import make_adapter

BLOCK = 4
PROMPTS = [tuple(range(100, 100 + length)) for length in (3, 15, 16, 17, 40, 64)]


@dataclass
class Audit:
    """Every step that went on, beside the same one written anew."""

    went_on: int = 0
    grown: int = 0
    """Of these, with blocks that the step before did not have."""
    differences: list[str] = field(default_factory=list)

    def look_who(self, asked: Sequence[Work], work: Sequence[Work]) -> None:
        if {item.sequence.order for item in asked} != {item.sequence.order for item in work}:
            self.differences.append(f"{len(asked)} asked for, and others run")

    def look(self, runner: Runner, step: Step, batch: ForwardBatch) -> None:
        self.went_on += 1
        anew = runner.batch(step)
        size = runner._block_tokens
        self.grown += any(item.sequence.cached % size == 0 for item in step.work)
        for name in ("token_ids", "positions", "logit_rows"):
            self._compare(name, getattr(batch, name), getattr(anew, name))
        found, expected = batch.attention, anew.attention
        for name in ("slots", "decode_contexts"):
            self._compare(name, getattr(found, name), getattr(expected, name))
        for row, context in enumerate(expected.decode_contexts.tolist()):
            used = -(-context // size)
            self._compare(
                f"blocks of row {row}",
                found.decode_blocks[row, :used],
                expected.decode_blocks[row, :used],
            )
        assert found.longest >= expected.longest
        assert (batch.lora is None) == (anew.lora is None)

    def _compare(self, what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        if not torch.equal(found, expected):
            self.differences.append(f"{what}: {found.tolist()}, anew {expected.tolist()}")


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Audit:
    found, with_adapters, go_on = Audit(), Runner._with_adapters, Steady.go_on

    def who(self: Steady, asked: Sequence[Work]) -> Written | None:
        made = go_on(self, asked)
        if made is not None:
            found.look_who(asked, made.work)
        return made

    def watched(self: Runner, step: Step, batch: ForwardBatch) -> ForwardBatch:
        made = with_adapters(self, step, batch)
        found.look(self, step, made)
        return made

    monkeypatch.setattr(Runner, "_with_adapters", watched)
    monkeypatch.setattr(Steady, "go_on", who)
    return found


def decode(start_tiny: StartTiny, folder: Path) -> None:
    """Waves of requests over two adapters and the base; more than the cache has room for."""
    node = start_tiny(kv_tokens=384, max_rows=12, step_tokens=64)
    for seed, name in enumerate("ab"):
        made = make_adapter(folder / name, dict(node.card.modules), rank=8 + 5 * seed, seed=seed)
        node.publish(name, made)
    asked = [
        node.ask(adapter, prompt, tokens=tokens)
        for tokens in (40, 9, 33)
        for prompt in PROMPTS
        for adapter in ("a", "b", "")
    ]
    for answer in asked:
        answer.wait()
    node.settle()


def test_what_goes_on_is_what_would_be_written_anew(
    start_tiny: StartTiny, tmp_path: Path, audit: Audit
) -> None:
    decode(start_tiny, tmp_path)
    assert audit.differences == []
    assert audit.went_on > 50
    assert audit.grown > 5


def test_control_blocks_that_are_not_added_are_noticed(
    start_tiny: StartTiny, tmp_path: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = Steady.go_on

    def forgetful(self: Steady, asked: Sequence[Work]) -> object:
        if self._last is not None:
            self._last.lengths = [len(table) for table in self._last.tables]
        return go_on(self, asked)

    monkeypatch.setattr(Steady, "go_on", forgetful)
    decode(start_tiny, tmp_path)
    assert audit.differences


def next_tokens(prompts: Sequence[int]) -> list[Work]:
    """Requests with prompts of so many tokens, all but the last of which are cached."""
    work = []
    for number, length in enumerate(prompts):
        sequence = make_sequence(length, order=number)
        sequence.cached = length - 1
        sequence.block_table = [10 * number + place for place in range(1 + (length - 1) // BLOCK)]
        work.append(Work(sequence, 1))
    return work


def begun(work: list[Work]) -> Steady:
    """That has seen a step of these, which has run."""
    chunks = [Chunk(tuple(w.sequence.block_table), w.sequence.cached, 1) for w in work]
    plan = AttentionPlan.build(chunks, block_tokens=BLOCK, device=torch.device("cpu"), by_row=64)
    rows = torch.arange(len(work))
    steady = Steady(block_tokens=BLOCK)
    steady.begin(work, tuple(work), ForwardBatch(rows.clone(), rows.clone(), plan, None, rows))
    for item in work:
        item.sequence.cached += 1
        item.sequence.tokens.append(7)
    return steady


def test_it_goes_on_with_the_same_requests_alone() -> None:
    work = next_tokens([3, BLOCK + 1, 2 * BLOCK])
    assert begun(work).go_on(work[:2]) is None
    work = next_tokens([3, 2, 6])
    assert begun(work).go_on([*work[:2], *next_tokens([6])]) is None
    work = next_tokens([3, 2, 6])
    assert begun(work).go_on(work) is not None


def test_it_does_not_go_on_over_other_blocks_more_of_them_or_prompts() -> None:
    work = next_tokens([3, 2])
    steady = begun(work)
    work[0].sequence.block_table = list(work[0].sequence.block_table)
    assert steady.go_on(work) is None, "it gave its blocks up and took others"
    work = next_tokens([3, BLOCK])
    steady = begun(work)
    work[1].sequence.block_table.append(99)
    assert steady.go_on(work) is None, "there is no column for it"
    work = next_tokens([3, 2])
    steady = begun(work)
    work[1].sequence.tokens.append(7)
    assert steady.go_on(work) is None, "it starts over, and has more than one token to read"

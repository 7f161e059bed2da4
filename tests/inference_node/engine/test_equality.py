"""Exactness: what a mixed batch answers is what each adapter answers alone, and as PEFT does.

vllm#10798: for the same adapter vLLM's output was not PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from itertools import islice
from pathlib import Path

import pytest
import torch

from adapter_store.memory import MemoryStore
from inference_node.adapters.pool import AdapterPool
from inference_node.config import EngineConfig
from inference_node.engine import runner as runner_module
from inference_node.engine.sampler import sample
from inference_node.engine.sequence import Sequence
from inference_node.kernels.lora import SlotPages
from inference_node.request import Sampling
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.oracle import Oracle
from tests.inference_node.harness import Answer, Node, start_node
from tests.inference_node.tiny import make_adapter

TOKENS = 64
PERSONAS = Path(__file__).parents[3] / "examples" / "personas" / "adapters"
PROMPTS = (
    "What is the best thing about the sea?",
    "How do I make a good cup of tea? Please answer in detail, one step after another.",
    "Why is the sky blue?",
    "I have lost my keys and I am late for work. What should I do first?",
)


@pytest.fixture(scope="module")
def exact_node(
    default_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Node, Oracle, list[str]]]:
    """The real base in float32 with the three personas and one adapter of an odd rank."""
    config = EngineConfig(
        base_model=str(default_base), linears="dense", dtype="float32", kv_tokens=4096
    )
    node = start_node(config, MemoryStore())
    odd = make_adapter(
        tmp_path_factory.mktemp("odd"), dict(node.card.modules), rank=13, seed=5, strength=0.05
    )
    folders = {path.name: path / "v1" for path in sorted(PERSONAS.iterdir())} | {"odd": odd}
    for name, folder in folders.items():
        node.publish(name, folder)
    yield node, Oracle(default_base, folders), list(folders)
    node.close()


def test_every_row_of_a_mixed_batch_answers_as_peft_does_alone(
    exact_node: tuple[Node, Oracle, list[str]],
) -> None:
    node, oracle, names = exact_node
    asked = []
    for index, name in enumerate(["", *names]):
        prompt = node.engine.tokenizer.encode(PROMPTS[index % len(PROMPTS)])
        answer = node.ask(name, prompt, tokens=TOKENS)
        asked.append((name, prompt, answer))
        answer.wait(tokens=3)
    for name, prompt, answer in asked:
        assert answer.completed.served.adapter == name
        assert answer.token_ids == oracle.greedy(name, prompt, TOKENS), name or "base"
    node.settle()


def test_vllm_10798_control_a_scale_that_is_left_out_is_not_peft_s_answer(
    exact_node: tuple[Node, Oracle, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, oracle, names = exact_node
    prompt = node.engine.tokenizer.encode("What do you think of rain in the morning?")
    expected = oracle.greedy(names[0], prompt, TOKENS)
    assert node.ask(names[0], prompt, tokens=TOKENS).tokens == expected
    monkeypatch.setattr(
        AdapterPool, "routing", lambda _, held: SlotPages(held.pages, 1.0, held.stamp)
    )
    assert node.ask(names[0], prompt[1:], tokens=TOKENS).tokens != oracle.greedy(
        names[0], prompt[1:], TOKENS
    )
    node.settle()


def test_a_prompt_cut_into_chunks_beside_running_rows_answers_as_peft_does_alone(
    exact_node: tuple[Node, Oracle, list[str]],
) -> None:
    node, oracle, names = exact_node
    long_prompt = node.engine.tokenizer.encode(" ".join(PROMPTS * 16))
    assert len(long_prompt) > 512
    beside = node.ask(names[0], PROMPTS[0], tokens=40).wait(tokens=2)
    answer = node.ask(names[1], long_prompt, tokens=16)
    assert answer.tokens == oracle.greedy(names[1], long_prompt, 16)
    beside.wait()
    node.settle()


def test_an_adapter_row_does_not_change_when_its_neighbours_change(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    for index, rank in enumerate((1, 5, 8, 12, 32, 64)):
        folder = make_adapter(tmp_path / f"r{rank}", dict(node.card.modules), rank=rank, seed=index)
        node.publish(f"r{rank}", folder)
    alone = node.ask("r12", tokens=TOKENS).tokens
    assert alone != node.ask("", tokens=TOKENS).tokens
    for neighbours in (["r1", "r64"], ["", "", "r5"], ["r12"] * 3, ["r8", "r32", "r5", ""]):
        others = [node.ask(name, "Different words.", tokens=TOKENS) for name in neighbours]
        answer = node.ask("r12", tokens=TOKENS)
        assert answer.tokens == alone, neighbours
        for other in others:
            other.wait()
    node.settle()


def test_a_seeded_answer_is_the_same_in_any_batch(start_tiny: StartTiny, tmp_path: Path) -> None:
    node = start_tiny()
    node.publish("a", make_adapter(tmp_path / "a", dict(node.card.modules), rank=8))
    rules = Sampling(temperature=0.9, top_p=0.95, top_k=50, seed=11)
    alone = node.ask("a", tokens=32, sampling=rules).tokens
    others = [node.ask("", tokens=32, sampling=Sampling(temperature=1.0)) for _ in range(3)]
    again = node.ask("a", tokens=32, sampling=rules).wait()
    assert again.token_ids == alone
    assert again.completed.seed == 11
    for other in others:
        other.wait()


def test_on_the_4_bit_kernel_batching_moves_a_row_less_than_the_kernel_rounds(
    exact_node: tuple[Node, Oracle, list[str]], default_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tolerance is measured, not chosen: how far the 4-bit kernel in bfloat16 alone is from
    exact float32 on the same tokens. A row on another's adapter is an order beyond it."""
    seen: dict[str, list[torch.Tensor]] = {}

    def spy(
        logits: torch.Tensor, sequences: Rows[Sequence], best: torch.Tensor | None
    ) -> list[int | None]:
        for row, sequence in zip(logits, sequences, strict=True):
            seen.setdefault(sequence.request.request_id, []).append(row.clone())
        return sample(logits, sequences, best)

    def ask(asked: Node, together: bool) -> list[Answer]:
        answers = []
        for name, prompt in zip(["", *names], PROMPTS, strict=True):
            answers.append(asked.ask(name, prompt, tokens=16))
            if not together:
                answers[-1].wait()
        return [answer.wait() for answer in answers]

    def distance(some: list[Answer], others: list[Answer]) -> float:
        return max(
            float((one - other).abs().max() / one.std())
            for a, b in zip(some, others, strict=True)
            for one, other in islice(
                zip(seen[a.request_id], seen[b.request_id], strict=True),
                common_prefix(a.token_ids, b.token_ids) + 1,
            )
        )

    monkeypatch.setattr(runner_module, "sample", spy)
    names = [path.name for path in sorted(PERSONAS.iterdir())]
    exact = ask(exact_node[0], together=False)
    config = EngineConfig(base_model=str(default_base), linears="nf4", kv_tokens=4096)
    node = start_node(config, MemoryStore())
    try:
        for name in names:
            node.publish(name, PERSONAS / name / "v1")
        alone = ask(node, together=False)
        batched = ask(node, together=True)
        rounding = distance(alone, exact)
        assert distance(alone, batched) <= rounding
        swapped = [node.ask(names[0], PROMPTS[0], tokens=16).wait()]
        assert distance(alone[:1], swapped) > 4 * rounding
    finally:
        node.close()


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two answers share before they part."""
    pairs = zip(one, other, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(one))

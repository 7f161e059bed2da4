"""Every family served answers as PEFT does on the same 4-bit values, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PretrainedConfig

from adapter_store.memory import MemoryStore
from inference_node.config import EngineConfig
from inference_node.engine.build import base_card
from inference_node.engine.runner import Runner
from inference_node.engine.scheduler import Step
from inference_node.kernels.paged_attention import AttentionPlan
from inference_node.model import decoder as decoder_module
from inference_node.model.batch import ForwardBatch
from inference_node.model.decoder import Decoder
from inference_node.model.trace import trace
from tests.inference_node.engine.oracle import Oracle
from tests.inference_node.families import FAMILIES, WINDOW, make_family
from tests.inference_node.harness import Answer, Node, start_node
from tests.inference_node.tiny import make_adapter

TOKENS = 24
PROMPTS = ("Tell me about the sea, please.", "Why?", "A longer one: " + "x y z " * 6, "Tea!")
TOLERANCE = 1e-3
"""Of a logit, as in test_decoder.py: the same float32 sums in another order."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Logits:
    """The logits each request's tokens were drawn from."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, list[torch.Tensor]] = {}
        self._last = torch.empty(0)
        forward, run = Decoder.forward, Runner.run

        def see_forward(decoder: Decoder, batch: ForwardBatch) -> torch.Tensor:
            self._last = forward(decoder, batch).clone()
            return self._last.clone()

        def see_run(runner: Runner, step: Step) -> object:
            sampling = [item.sequence for item in step.work if item.samples]
            drawn = run(runner, step)
            for row, sequence in zip(self._last, sampling, strict=True):
                self.rows.setdefault(sequence.request.request_id, []).append(row)
            return drawn

        patch.setattr(Decoder, "forward", see_forward)
        patch.setattr(Runner, "run", see_run)

    def of(self, answer: Answer) -> torch.Tensor:
        return torch.stack(self.rows[answer.request_id])


def sees_windows(config: PretrainedConfig) -> bool:
    return any(rule.window == WINDOW for rule in trace(config).attention)


def family_config(folder: Path) -> EngineConfig:
    return EngineConfig(
        base_model=str(folder),
        linears="dense",
        dtype="float32",
        pool_bytes=4 * 2**20,
        kv_tokens=1024,
        max_context=256,
        max_rows=8,
        step_tokens=32,
    )


def adapters(folder: Path, modules: dict[str, tuple[int, int]]) -> dict[str, Path]:
    """Rank 8 on the linears that read the layer's input, rank 64 on all."""
    leaves = sorted({path.rsplit(".", 1)[-1] for path in modules})
    narrow = [leaf for leaf in leaves if leaf in ("q_proj", "v_proj", "qkv_proj")]
    return {
        "r8": make_adapter(
            folder / "r8", modules, rank=8, targets=narrow, seed=1, alpha=8, strength=0.3
        ),
        "r64": make_adapter(
            folder / "r64", modules, rank=64, targets=leaves, seed=2, alpha=64, strength=0.1
        ),
    }


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_answers_as_peft_does_in_a_batch_of_mixed_adapters(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Logits(monkeypatch)
    folder = make_family(tmp_path / family, FAMILIES[family])
    node = start_node(family_config(folder), MemoryStore())
    try:
        folders = adapters(tmp_path, dict(node.card.modules))
        for name, path in folders.items():
            node.publish(name, path)
        answers = ask(node, ["", "r8", "r64", "r8"])
    finally:
        node.close()
    oracle = Oracle(folder, folders)
    compare(oracle, answers, logits)
    told_apart(oracle, answers)


def compare(
    oracle: Oracle, answers: list[tuple[str, tuple[int, ...], Answer]], seen: Logits
) -> None:
    for name, prompt, answer in answers:
        assert answer.token_ids == oracle.greedy(name, prompt, TOKENS), name or "base"
        expected = oracle.logits(name, [*prompt, *answer.token_ids[:-1]])[-TOKENS:]
        torch.testing.assert_close(seen.of(answer), expected, rtol=TOLERANCE, atol=TOLERANCE)


def ask(node: Node, names: list[str]) -> list[tuple[str, tuple[int, ...], Answer]]:
    asked = []
    for name, text in zip(names, PROMPTS, strict=True):
        prompt = tuple(node.engine.tokenizer.encode(text))
        asked.append((name, prompt, node.ask(name, prompt, tokens=TOKENS)))
    for _, _, answer in asked:
        assert answer.completed
    node.settle()
    return asked


def told_apart(oracle: Oracle, answers: list[tuple[str, tuple[int, ...], Answer]]) -> None:
    """The control: another's adapter, or none, is far outside the tolerance."""
    for name, prompt, _ in answers:
        own = oracle.logits(name, prompt)
        for other in {"", "r8", "r64"} - {name}:
            assert (own - oracle.logits(other, prompt)).abs().max() > 20 * TOLERANCE


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_publisher_has_the_same_card_without_the_weights(family: str, tmp_path: Path) -> None:
    folder = make_family(tmp_path / family, FAMILIES[family])
    card = base_card(family_config(folder))
    oracle = Oracle(folder, {})
    assert dict(card.modules) == oracle.linears()
    assert card.architecture == type(FAMILIES[family]).__name__.replace("Text", "").replace(
        "Config", "ForCausalLM"
    )


@pytest.mark.parametrize("family", [name for name in FAMILIES if sees_windows(FAMILIES[name])])
def test_control_a_window_left_out_is_seen(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttentionPlan, "within", lambda plan, window: plan)
    with pytest.raises(AssertionError):
        check_alone(family, tmp_path, monkeypatch)


@pytest.mark.parametrize("shift", [-1, 1])
def test_control_a_window_off_by_one_is_seen(
    shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = AttentionPlan.within
    monkeypatch.setattr(AttentionPlan, "within", lambda plan, window: within(plan, window + shift))
    with pytest.raises(AssertionError):
        check_alone("mistral-window", tmp_path, monkeypatch)


def test_control_a_soft_cap_left_out_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = decoder_module.paged_attention
    monkeypatch.setattr(
        decoder_module,
        "paged_attention",
        lambda *q, softcap, **rest: attend(*q, softcap=None, **rest),
    )
    with pytest.raises(AssertionError):
        check_alone("gemma2", tmp_path, monkeypatch)


def check_alone(family: str, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """The comparison above, of the base alone."""
    seen = Logits(patch)
    folder = make_family(tmp_path / family, FAMILIES[family])
    node = start_node(family_config(folder), MemoryStore())
    try:
        answers = ask(node, [""] * len(PROMPTS))
    finally:
        node.close()
    compare(Oracle(folder, {}), answers, seen)

"""Whether a node's answers are PEFT's: the same tokens, drawn from the same logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from inference_node.config import EngineConfig
from inference_node.engine.runner import Drawn, Runner
from inference_node.engine.scheduler import Step
from inference_node.model.batch import Decoded, ForwardBatch
from inference_node.model.decoder import Decoder
from tests.inference_node.engine.oracle import Oracle
from tests.inference_node.harness import Answer, Node

TOKENS = 24
PROMPTS = ("Tell me about the sea, please.", "Why?", "A longer one: " + "x y z " * 6, "Tea!")
TOLERANCE = 1e-3
"""Of a logit, as in test_decoder.py: the same float32 sums in another order."""


Asked = tuple[str, tuple[int, ...], Answer]
"""Adapter, prompt, answer."""


class Logits:
    """The logits each request's tokens were drawn from."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, list[torch.Tensor]] = {}
        self._last = torch.empty(0)
        decide, run = Decoder.decide, Runner.run

        def see_decide(decoder: Decoder, batch: ForwardBatch) -> Decoded:
            decoded = decide(decoder, batch)
            self._last = decoded.logits.clone()
            return decoded

        def see_run(runner: Runner, step: Step) -> list[Drawn]:
            drawn = run(runner, step)
            for row, one in zip(self._last, drawn, strict=True):
                self.rows.setdefault(one.sequence.request.request_id, []).append(row)
            return drawn

        patch.setattr(Decoder, "decide", see_decide)
        patch.setattr(Runner, "run", see_run)

    def of(self, answer: Answer) -> torch.Tensor:
        return torch.stack(self.rows[answer.request_id])


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


def ask(node: Node, names: Sequence[str]) -> list[Asked]:
    """All of them at once, the prompts in turn."""
    asked = []
    for index, name in enumerate(names):
        text = PROMPTS[index % len(PROMPTS)]
        prompt = tuple(node.engine.tokenizer.encode(text))
        asked.append((name, prompt, node.ask(name, prompt, tokens=TOKENS)))
    for _, _, answer in asked:
        assert answer.completed
    node.settle()
    return asked


def compare(oracle: Oracle, answers: list[Asked], seen: Logits) -> None:
    for name, prompt, answer in answers:
        assert answer.token_ids == oracle.greedy(name, prompt, TOKENS), name or "base"
        expected = oracle.logits(name, [*prompt, *answer.token_ids[:-1]])[-TOKENS:]
        torch.testing.assert_close(seen.of(answer), expected, rtol=TOLERANCE, atol=TOLERANCE)

"""Watches the steps of a running engine from its own thread, and times the parts of one.

A part is run alone, over the pages, blocks and rows of the very step that is due, all layers in
turn, with the engine's own operators; then the step itself runs. What remains of a step is what
none of the parts explains: norms, rotary angles, activations, Python, scheduling, sampling, and
handing tokens out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from inference_node.engine.loop import EngineLoop
from inference_node.engine.scheduler import Step

if TYPE_CHECKING:
    from benchmarks.cpu.ours import Engine


@dataclass(frozen=True, slots=True)
class StepEnd:
    at: float
    decoding: int
    """Rows, when each was one next token; 0 for a step with prompts in it."""
    probed: bool


class StepWatch:
    """Stands between the loop and its runner. Made before the loop starts."""

    def __init__(self, loop: EngineLoop) -> None:
        self._runner: Any = loop._runner
        self._decoder = self._runner._decoder
        loop._runner = self  # type: ignore[assignment]
        self.ends: list[StepEnd] = []
        self._parts: list[dict[str, float]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, step: Step, *rest: Any) -> Any:
        decoding = len(step.work) if all(item.length == 1 for item in step.work) else 0
        probed = bool(decoding and self._parts is not None and len(self.ends) % 2)
        if probed:
            assert self._parts is not None
            self._parts.append(_time_parts(self._decoder, self._runner.batch(step)))
        drawn = self._runner.run(step, *rest)
        self.ends.append(StepEnd(time.perf_counter(), decoding, probed))
        return drawn

    def model_facts(self) -> dict[str, int]:
        head = self._decoder.base.model.get_output_embeddings().weight
        keys = self._decoder._cache.k
        return {
            "head_parameters": head.numel(),
            "head_bytes": head.numel() * head.element_size(),
            "kv_bytes_a_token": 2 * sum(k[0, 0].numel() * k.element_size() for k in keys),
        }

    def parts(
        self, engine: Engine, *, prompts: Sequence[Sequence[int]], adapters: Sequence[str], new: int
    ) -> dict[str, Any]:
        """Milliseconds of a decode step of all requests and of its parts, medians over the steps.

        Steps that nothing was timed in are what `step` is of, from one step's end to the next.
        """
        self.ends.clear()
        self._parts = []
        engine.generate(prompts, adapters, new)
        parts, self._parts = self._parts, None
        rows = len(prompts)
        pairs = pairwise(self.ends)
        steps = [
            after.at - before.at
            for before, after in pairs
            if before.decoding == after.decoding == rows and not after.probed
        ]
        medians = {
            name: 1e3 * statistics.median(one[name] for one in parts)
            for name in (parts[0] if parts else ())
        }
        return {"step": 1e3 * statistics.median(steps), **medians, "steps": len(steps)}


@torch.inference_mode()
def _time_parts(decoder: Any, batch: Any) -> dict[str, float]:
    model, layers = decoder.base.model, range(decoder.module_map.layers)
    rows, dtype = batch.token_ids.shape[0], decoder.base.dtype
    groups = decoder.module_map.groups
    linears = [
        [
            model.get_submodule(decoder.module_map.path(layer, group.tails[0])).group.base
            for group in groups
        ]
        for layer in layers
    ]
    x = [torch.randn(rows, group.shape.in_features).to(dtype) for group in groups]
    y = [torch.zeros(rows, group.shape.out_total, dtype=dtype) for group in groups]
    keys = decoder._cache.k
    dim = keys[0].shape[-1]
    q = torch.randn(rows, model.config.num_attention_heads, dim).to(dtype)
    head = model.get_output_embeddings()

    def base() -> None:
        for layer in linears:
            for linear, given in zip(layer, x, strict=True):
                linear(given)

    def lora() -> None:
        if batch.lora is None:
            return
        decoder._step.begin(batch.lora)
        for layer in layers:
            for group in range(len(groups)):
                decoder._step.add(y[group], x[group], group, layer)
        decoder._step.begin(None)

    def attention() -> None:
        decoder._cache.begin(batch.attention)
        for layer in layers:
            decoder._cache.attend(layer, q)
        decoder._cache.begin(None)

    def lm_head() -> None:
        head(x[0])

    timed = {"base_linears": base, "attention": attention, "lora": lora, "lm_head": lm_head}
    return {name: _seconds(part) for name, part in timed.items()}


def _seconds(part: Callable[[], None]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start

"""Watches the steps of a running engine from its own thread, and times the parts of each.

The kernels tell their parts apart while they run (`DecoderLayers.time_parts`), so that what one
part asks for ahead of the next counts where it is paid for. What remains of a step is what none of
the parts explains: norms, rotary angles, activations, Python, scheduling, sampling, and handing
tokens out.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from inference_node.engine.loop import EngineLoop
from inference_node.engine.scheduler import Step

if TYPE_CHECKING:
    from benchmarks.cpu.ours import Engine


class NoSteps(Exception):
    """There was nothing to time."""


@dataclass(frozen=True, slots=True)
class StepEnd:
    at: float
    decoding: int
    """Rows, when each was one next token; 0 for a step with prompts in it."""
    parts: dict[str, float]
    """Seconds; empty while none are timed."""


class StepWatch:
    """Stands between the loop and its runner. Made before the loop starts."""

    def __init__(self, loop: EngineLoop) -> None:
        self._runner: Any = loop._flights.runner
        self._decoder = self._runner._decoder
        loop._flights.runner = self  # type: ignore[assignment]
        self.ends: list[StepEnd] = []
        self._spent: Callable[[], dict[str, float]] = dict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, step: Step, *rest: Any) -> Any:
        decoding = len(step.work) if all(item.length == 1 for item in step.work) else 0
        before = self._spent()
        drawn = self._runner.run(step, *rest)
        parts = {name: spent - before[name] for name, spent in self._spent().items()}
        self.ends.append(StepEnd(time.perf_counter(), decoding, parts))
        return drawn

    def model_facts(self) -> dict[str, int]:
        head = self._decoder.base.model.get_output_embeddings().weight
        keys = self._decoder._cache.k
        return {
            "head_parameters": head.numel(),
            "head_bytes": head.numel() * head.element_size(),
            "kv_bytes_a_token": 2 * sum(k[0, 0].numel() * k.element_size() for k in keys),
            "steps_in_one_call": self._decoder._whole is not None,
        }

    def parts(
        self, engine: Engine, *, prompts: Sequence[Sequence[int]], adapters: Sequence[str], new: int
    ) -> dict[str, Any]:
        """Milliseconds of a decode step of all requests and of its parts, medians over the steps.

        `step` is from one step's end to the next. Only where layers are run in one call.
        """
        self.ends.clear()
        with self._timed():
            engine.generate(prompts, adapters, new)
        rows = len(prompts)
        steps = [
            {"step": after.at - before.at, **after.parts}
            for before, after in pairwise(self.ends)
            if before.decoding == after.decoding == rows
        ]
        if not steps:
            raise NoSteps(f"no two steps in a row decoded all {rows} requests")
        medians = {name: 1e3 * statistics.median(one[name] for one in steps) for name in steps[0]}
        return {**medians, "steps": len(steps)}

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """While it lasts, steps are timed by the kernels."""
        self._spent = self._decoder._fused.native.time_parts()
        try:
            yield
        finally:
            self._spent = dict

"""Decode steps captured as CUDA graphs: one launch a step instead of a thousand.

A graph is captured for a number of rows, with adapters and without, and never again: what changes
from step to step, which pages rows read among it, are the contents of a `StaticBatch`. Loading and
evicting adapters writes pages and touches no graph. A model whose step cannot be captured runs it
as any other, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from inference_node.kernels.greedy import likeliest
from inference_node.model.batch import ForwardBatch
from inference_node.model.static_batch import DecodeRow, StaticBatch, StaticSizes

log = logging.getLogger(__name__)

_SMALL = (1, 2, 4, 8, 16)
_STEP = 16
_WARM_UPS = 2
"""Steps before a capture: the first compiles kernels and sets their attributes."""


def buckets_for(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows to capture: padding costs little where rows are few, and little of many."""
    some = [rows for rows in _SMALL if rows < max_rows]
    rows = 2 * _STEP
    while rows < max_rows:
        some.append(rows)
        rows += _STEP if rows < 4 * _STEP else rows // 2
    return (*some, max_rows)


def bucket_of(rows: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds so many rows; None when none does."""
    return next((bucket for bucket in sorted(buckets) if bucket >= rows), None)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a captured step gives; both are overwritten by the next one."""

    logits: torch.Tensor  # [rows, vocab] float32
    best: torch.Tensor  # [rows] int64: the likeliest token; -1 where logits are not finite


Step = Callable[[], Decoded]
Replay = Callable[[], None]
Record = Callable[[Step], tuple[Replay, Decoded]]
"""Run a step so that it can be run again: how, and where its results will be."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A step that can be run again."""

    step: StaticBatch
    replay: Replay
    out: Decoded


class CudaGraphs:
    """`Record` by CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Step) -> tuple[Replay, Decoded]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                step()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            out = step()
        return graph.replay, out


class DecodeGraphs:
    """Captured steps of one decoder; used by the thread that owns it."""

    def __init__(self, forward: Callable[[ForwardBatch], torch.Tensor], record: Record) -> None:
        self._forward = forward
        self._record = record
        self._captured: dict[tuple[int, bool], Captured] = {}

    @property
    def count(self) -> int:
        return len(self._captured)

    def capture(self, buckets: Sequence[int], sizes: StaticSizes, *, device: torch.device) -> None:
        """Capture every bucket, the largest first so that the others find its memory.

        Writes to the spare block alone. A failure leaves what was captured before it.
        """
        try:
            for rows in sorted(buckets, reverse=True):
                for lora in (True, False):
                    step = StaticBatch(rows, sizes, lora=lora, device=device)
                    replay, out = self._record(partial(self._step, step.batch))
                    self._captured[rows, lora] = Captured(step, replay, out)
        except Exception as error:
            log.warning(
                "%d of %d decode steps are captured, others run uncaptured: %s",
                self.count,
                2 * len(buckets),
                error,
            )

    def held(self, rows: int, *, lora: bool) -> Captured:
        """The captured step of just so many rows. Raises KeyError when there is none."""
        return self._captured[rows, lora]

    def run(self, rows: Sequence[DecodeRow]) -> Decoded | None:
        """One step; None when no captured step holds it."""
        lora = any(row.slot is not None for row in rows)
        sizes = [size for size, has in self._captured if has == lora]
        bucket = bucket_of(len(rows), sizes)
        if bucket is None:
            return None
        captured = self._captured[bucket, lora]
        longest = captured.step.sizes.blocks * captured.step.sizes.block_tokens
        if any(row.position >= longest for row in rows):
            return None
        captured.step.fill(rows)
        captured.step.send()
        captured.replay()
        out = captured.out
        return Decoded(out.logits[: len(rows)], out.best[: len(rows)])

    def _step(self, batch: ForwardBatch) -> Decoded:
        logits = self._forward(batch)
        return Decoded(logits, likeliest(logits))

"""Decode steps captured as CUDA graphs: one launch a step instead of a thousand.

A graph is captured for a number of rows, with adapters and without, and never again: what changes
from step to step, which pages rows read among it, are the contents of a `StaticBatch`. Loading and
evicting adapters writes pages and touches no graph. A model whose step cannot be captured runs it
as any other, and the log says why.

A step can be queued before the tokens of the one before are known: the device keeps what each row
drew, and a row of the next step names the row that its token comes from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from inference_node.kernels.greedy import likeliest
from inference_node.model.batch import Decoded, ForwardBatch
from inference_node.model.lane import Lane, Wait, Work, lane_of
from inference_node.model.static_batch import DecodeRow, StaticBatch, StaticSizes

log = logging.getLogger(__name__)

_SMALL = (1, 2, 4, 8, 16)
_STEP = 16
_ON_THEIR_WAY = 2
"""Steps that may be queued with their tokens unread."""
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


Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits and the likeliest tokens to the tokens, on the device; [rows] int64 as `best` is."""
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


@dataclass(frozen=True, slots=True)
class Queued:
    """A step that the device was given."""

    _wait: Wait
    _tokens: torch.Tensor  # [rows] int64, on the host

    def tokens(self) -> list[int]:
        """The token of each row, -1 where logits are not finite; waits for the step.

        Call before two more steps are queued.
        """
        self._wait()
        return self._tokens.tolist()


class DecodeGraphs:
    """Captured steps of one decoder; used by the thread that owns it."""

    def __init__(
        self,
        forward: Callable[[ForwardBatch], torch.Tensor],
        record: Record,
        *,
        lane: Lane | None = None,
    ) -> None:
        """`lane` is the device's; None: that of the device that steps are captured for."""
        self._forward = forward
        self._record = record
        self._lane = lane
        self._captured: dict[tuple[int, bool], Captured] = {}
        self._drawn = torch.zeros(0, dtype=torch.int64)
        self._read: list[torch.Tensor] = []

    @property
    def count(self) -> int:
        return len(self._captured)

    def capture(self, buckets: Sequence[int], sizes: StaticSizes, *, device: torch.device) -> None:
        """Capture every bucket, the largest first so that the others find its memory.

        Writes to the spare block alone. A failure leaves what was captured before it. Call once.
        """
        assert not self._captured
        self._lane = self._lane or lane_of(device)
        self._drawn = torch.zeros(max(buckets), dtype=torch.int64, device=device)
        pinned = device.type == "cuda"
        self._read = [
            torch.zeros(max(buckets), dtype=torch.int64, pin_memory=pinned)
            for _ in range(_ON_THEIR_WAY)
        ]
        try:
            for rows in sorted(buckets, reverse=True):
                for lora in (True, False):
                    step = StaticBatch(rows, sizes, lora=lora, device=device)
                    replay, out = self._record(partial(self._step, step, self._drawn))
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

    def holds(self, rows: int, *, lora: bool, position: int) -> bool:
        """Whether a step of so many rows up to a position was captured."""
        return self._fitting(rows, lora=lora, position=position) is not None

    def run(self, rows: Sequence[DecodeRow]) -> Decoded | None:
        """One step; None when no captured step holds it."""
        captured = self._for(rows)
        if captured is None:
            return None
        self._run(captured, rows)
        out = captured.out
        return Decoded(out.logits[: len(rows)], out.best[: len(rows)])

    def queue(self, rows: Sequence[DecodeRow], *, draw: Draw | None = None) -> Queued:
        """One step that nobody waits for, its tokens kept for the next. Call only if `holds`.

        Without `draw` each row takes the likeliest token.
        """
        captured = self._for(rows)
        assert captured is not None
        self._run(captured, rows)
        count = len(rows)
        if draw is not None:
            self.put(partial(self._redraw, captured.out, count, draw))
        self._read.reverse()
        target = self._read[0][:count]
        self.put(partial(target.copy_, self._drawn[:count], non_blocking=True))
        assert self._lane is not None
        return Queued(self._lane.mark(), target)

    def _redraw(self, out: Decoded, count: int, draw: Draw) -> None:
        self._drawn[:count] = draw(out.logits[:count], out.best[:count])

    def put(self, work: Work) -> None:
        """Have the device do something between the steps before and those to come."""
        assert self._lane is not None
        self._lane.put(work)

    def _run(self, captured: Captured, rows: Sequence[DecodeRow]) -> None:
        self.put(partial(captured.step.send, captured.step.fill(rows)))
        self.put(captured.replay)

    def _for(self, rows: Sequence[DecodeRow]) -> Captured | None:
        return self._fitting(
            len(rows),
            lora=any(row.slot is not None for row in rows),
            position=max(row.position for row in rows),
        )

    def _fitting(self, rows: int, *, lora: bool, position: int) -> Captured | None:
        bucket = bucket_of(rows, [size for size, has in self._captured if has == lora])
        if bucket is None:
            return None
        captured = self._captured[bucket, lora]
        longest = captured.step.sizes.blocks * captured.step.sizes.block_tokens
        return captured if position < longest else None

    def _step(self, step: StaticBatch, drawn: torch.Tensor) -> Decoded:
        """Tokens of -1, which end their requests, are run as any other and nobody reads the row."""
        source = step.source
        before = drawn[source.clamp(min=0)].clamp(min=0)
        tokens = torch.where(source < 0, step.batch.token_ids, before)
        logits = self._forward(replace(step.batch, token_ids=tokens))
        best = likeliest(logits)
        drawn[: step.rows] = best
        return Decoded(logits, best)

"""Captured decode steps where there is no card: run again on the same inputs, as a graph does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from inference_node.engine import build as build_module
from inference_node.kernels.backend import Backend
from inference_node.kernels.lora import GroupPool, RowPages, expand_add_rows, shrink_rows
from inference_node.kernels.pointwise import REFERENCE
from inference_node.model import graphs as graphs_module
from inference_node.model.batch import Decoded
from inference_node.model.graphs import DecodeGraphs, Draw, Queued, Step
from inference_node.model.lane import Lane, Wait, Work
from inference_node.model.static_batch import DecodeRow


@dataclass
class Reruns:
    """A `Record` that computes a recorded step again."""

    recorded: int = 0
    replayed: int = 0

    def __call__(self, step: Step) -> tuple[Callable[[], None], Decoded]:
        self.recorded += 1
        out = step()

        @torch.inference_mode()
        def replay() -> None:
            self.replayed += 1
            again = step()
            out.logits.copy_(again.logits)
            out.best.copy_(again.best)

        return replay, out


@dataclass
class LateLane:
    """A device that does nothing until somebody waits for it: as late as a card may ever be."""

    _work: list[Work] = field(default_factory=list)
    done: int = 0
    longest: int = 0
    """Steps' work that was ever put and not done."""

    def put(self, work: Work) -> None:
        self._work.append(work)
        self.longest = max(self.longest, len(self._work) - self.done)

    def mark(self) -> Wait:
        end = len(self._work)

        def wait() -> None:
            while self.done < end:
                self._work[self.done]()
                self.done += 1

        return wait


class ReferenceRows:
    """`RowKernels` by the reference, which follows routing of any length."""

    def shrink_rows(
        self, x: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> torch.Tensor:
        return shrink_rows(x, pool, layer, rows)

    def expand_add_rows(
        self, y: torch.Tensor, h: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> None:
        expand_add_rows(y, h, pool, layer, rows)


@dataclass
class Device:
    """What the engines of a test run on."""

    lane: Lane
    reruns: Reruns = field(default_factory=Reruns)
    carried: int = 0
    """Rows whose token the host did not know when they were launched."""


def install(patch: pytest.MonkeyPatch, lane: Lane) -> Device:
    """Engines that are built now capture their steps, in few launches, and run them on `lane`."""
    found = Device(lane)
    backend = Backend(
        "torch kernels, captured", rows=ReferenceRows(), pointwise=REFERENCE, captures=True
    )
    times = itertools.cycle((2.0, 1.0))
    patch.setattr(build_module, "seconds_on_card", lambda _: next(times))
    patch.setattr(build_module, "choose", lambda *_, **__: backend)
    patch.setattr(build_module, "CudaGraphs", lambda _: found.reruns)
    patch.setattr(graphs_module, "lane_of", lambda _: found.lane)
    run, queue = DecodeGraphs.run, DecodeGraphs.queue

    def run_now(graphs: DecodeGraphs, rows: Sequence[DecodeRow]) -> Decoded | None:
        decoded = run(graphs, rows)
        found.lane.mark()()
        return decoded

    def watched(
        graphs: DecodeGraphs, rows: Sequence[DecodeRow], *, draw: Draw | None = None
    ) -> Queued:
        found.carried += sum(row.source is not None for row in rows)
        return queue(graphs, rows, draw=draw)

    patch.setattr(DecodeGraphs, "run", run_now)
    patch.setattr(DecodeGraphs, "queue", watched)
    return found

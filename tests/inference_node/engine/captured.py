"""Captured decode steps where there is no card: run again on the same inputs, as a graph does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from inference_node.kernels.lora import GroupPool, RowPages, expand_add_rows, shrink_rows
from inference_node.model.graphs import Decoded, Step
from inference_node.model.lane import Wait, Work


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

"""What replaces the linears of the base model: the same product plus each row's own adapter.

Linears that read one tensor object (q, k and v; gate and up) form a group and run as one: the
first of them to be called computes the outputs of all.
"""

from __future__ import annotations

import torch
from torch import nn

from inference_node.kernels.backend import REFERENCE, Backend
from inference_node.kernels.lora import (
    GroupPlan,
    GroupPool,
    LoraPlan,
    gather_a,
    gather_b,
    lora_expand_add,
    lora_shrink,
)

_A = -1
"""Where a part would be, in the key of gathered A pages."""


class StepLora:
    """The adapter side of one running forward pass; owned by the decoder, used by one thread.

    Pages gathered for a step are kept for the next one while it reads the very same content, told
    by the stamps of its adapters and never by names, rows or page numbers. That is a second copy of
    the pages one step reads, beside the pool's fixed size and never larger than it.
    """

    def __init__(self, backend: Backend = REFERENCE) -> None:
        self.pools: tuple[GroupPool, ...] = ()
        self._rows = backend.rows
        self._plan: LoraPlan | None = None
        self._kept: dict[tuple[int, int, int], tuple[torch.Tensor, ...]] = {}
        self._kept_content: tuple[tuple[int, ...], ...] = ()

    def bind(self, pools: tuple[GroupPool, ...]) -> None:
        """Read from these pools from now on: what was gathered from others means nothing there."""
        self.pools = pools
        self._kept.clear()
        self._kept_content = ()

    def begin(self, plan: LoraPlan | None) -> None:
        """The step that starts, or None when it has ended or has no adapter."""
        self._plan = plan
        if plan is not None and plan.content != self._kept_content:
            self._kept.clear()
            self._kept_content = plan.content

    def add(self, y: torch.Tensor, x: torch.Tensor, group: int, layer: int) -> None:
        """Add to y, in place, what the step's adapters make of x.

        x [rows, in], y [rows, sum(out)].
        """
        plan = self._plan.groups[group] if self._plan is not None else None
        if plan is None:
            return
        pool = self.pools[group]
        if plan.blocks:
            self._add_blocks(y, x, pool, plan, group, layer)
        if plan.single is not None:
            assert self._rows is not None
            h = self._rows.shrink_rows(x, pool, layer, plan.single)
            self._rows.expand_add_rows(y, h, pool, layer, plan.single)

    def _add_blocks(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        pool: GroupPool,
        plan: GroupPlan,
        group: int,
        layer: int,
    ) -> None:
        key = (group, layer, _A)
        if key not in self._kept:
            self._kept[key] = gather_a(pool.a[:, layer], pool.shape, plan)
        shrunk = lora_shrink(x, self._kept[key], pool.shape, plan)
        for part, columns in enumerate(y.split(pool.shape.out_features, dim=1)):
            key = (group, layer, part)
            if key not in self._kept:
                self._kept[key] = gather_b(pool.b[:, layer], pool.shape, plan, part=part)
            lora_expand_add(columns, shrunk, self._kept[key], plan, part=part)


class LoraGroup(nn.Module):
    """The linears of one group of one layer, stacked, with the step's adapters added."""

    def __init__(
        self,
        base: nn.Module,
        out_features: tuple[int, ...],
        step: StepLora,
        *,
        group: int,
        layer: int,
    ) -> None:
        super().__init__()
        self.base = base
        self._out_features = out_features
        self._step = step
        self._group, self._layer = group, layer
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def all(self, x: torch.Tensor) -> torch.Tensor:  # [1, rows, in] -> [1, rows, sum(out)]
        """Outputs of every linear for x, side by side."""
        y: torch.Tensor = self.base(x)
        self._step.add(y[0], x[0], self._group, self._layer)
        return y

    def part(self, x: torch.Tensor, part: int) -> torch.Tensor:  # [1, rows, in] -> [1, rows, out]
        """Outputs of linear `part` for x; computed with the first part, handed out once."""
        if part == 0 or x is not self._input:
            self._input, self._outputs = x, self.all(x).split(self._out_features, dim=-1)
        found = self._outputs[part]
        if part == len(self._out_features) - 1:
            self._input, self._outputs = None, ()
        return found


class LoraLinear(nn.Module):
    """One linear of a group, where the model's own code calls it."""

    def __init__(self, group: LoraGroup, part: int) -> None:
        super().__init__()
        self.group = group
        self._part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [1, rows, in] -> [1, rows, out]
        return self.group.part(x, self._part)

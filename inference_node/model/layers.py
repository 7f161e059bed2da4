"""What replaces a linear of the base model: the same 4-bit product plus each row's own adapter.

Linears that read one tensor object (q, k and v; gate and up) form a group. The first of a group to
run multiplies the input by the A pages of all of them; each then adds its own slice of B.
"""

from __future__ import annotations

import torch
from torch import nn

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

    def __init__(self) -> None:
        self.pools: tuple[GroupPool, ...] = ()
        self._plan: LoraPlan | None = None
        self._input: torch.Tensor | None = None
        self._shrunk: tuple[torch.Tensor, ...] = ()
        self._kept: dict[tuple[int, int, int], tuple[torch.Tensor, ...]] = {}
        self._kept_content: tuple[tuple[int, ...], ...] = ()

    def begin(self, plan: LoraPlan | None) -> None:
        """The step that starts, or None when it has ended or has no adapter."""
        self._plan, self._input, self._shrunk = plan, None, ()
        if plan is not None and plan.content != self._kept_content:
            self._kept.clear()
            self._kept_content = plan.content

    def add(self, y: torch.Tensor, x: torch.Tensor, group: int, layer: int, part: int) -> None:
        """Add to y, in place, what the step's adapters make of x in slice `part` of a group.

        x [1, rows, in], y [1, rows, out].
        """
        plan = self._plan.groups[group] if self._plan is not None else None
        if plan is None:
            return
        pool = self.pools[group]
        if x is not self._input or part == 0:
            self._shrunk = lora_shrink(
                x[0], self._downs(pool, plan, group, layer), pool.shape, plan
            )
            self._input = x
        ups = self._ups(pool, plan, group, layer, part)
        lora_expand_add(y[0], self._shrunk, ups, plan, part=part)

    def _downs(
        self, pool: GroupPool, plan: GroupPlan, group: int, layer: int
    ) -> tuple[torch.Tensor, ...]:
        key = (group, layer, _A)
        if key not in self._kept:
            self._kept[key] = gather_a(pool.a[:, layer], pool.shape, plan)
        return self._kept[key]

    def _ups(
        self, pool: GroupPool, plan: GroupPlan, group: int, layer: int, part: int
    ) -> tuple[torch.Tensor, ...]:
        key = (group, layer, part)
        if key not in self._kept:
            self._kept[key] = gather_b(pool.b[:, layer], pool.shape, plan, part=part)
        return self._kept[key]


class LoraLinear(nn.Module):
    """A base linear with the step's adapters added."""

    def __init__(self, base: nn.Module, step: StepLora, *, group: int, layer: int, part: int):
        super().__init__()
        self.base = base
        self._step = step
        self._group, self._layer, self._part = group, layer, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [1, rows, in] -> [1, rows, out]
        y: torch.Tensor = self.base(x)
        self._step.add(y, x, self._group, self._layer, self._part)
        return y

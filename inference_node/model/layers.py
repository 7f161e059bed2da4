"""What replaces a linear of the base model: the same 4-bit product plus each row's own adapter.

Linears that read one tensor object (q, k and v; gate and up) form a group. The first of a group to
run computes the adapter product of all of them; the others take their slice of it.
"""

from __future__ import annotations

import torch
from torch import nn

from inference_node.kernels.lora import GroupPool, LoraPlan, lora_expand_add, lora_shrink


class StepLora:
    """The adapter side of one running forward pass; owned by the decoder, used by one thread."""

    def __init__(self) -> None:
        self.pools: tuple[GroupPool, ...] = ()
        self._plan: LoraPlan | None = None
        self._input: torch.Tensor | None = None
        self._shrunk: tuple[torch.Tensor, ...] = ()

    def begin(self, plan: LoraPlan | None) -> None:
        self._plan, self._input, self._shrunk = plan, None, ()

    def add(self, y: torch.Tensor, x: torch.Tensor, group: int, layer: int, part: int) -> None:
        """Add to y, in place, what the step's adapters make of x in slice `part` of a group.

        x [1, rows, in], y [1, rows, out].
        """
        plan = self._plan.groups[group] if self._plan is not None else None
        if plan is None:
            return
        pool = self.pools[group]
        if x is not self._input or part == 0:
            self._shrunk = lora_shrink(x[0], pool.a[:, layer], pool.shape, plan)
            self._input = x
        lora_expand_add(y[0], self._shrunk, pool.b[:, layer], pool.shape, plan, part=part)


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

"""The LoRA product in plain torch: the oracle, and the path taken on CPU."""

from __future__ import annotations

import torch

from inference_node.kernels.lora.contract import PAGE_RANKS, GroupPlan, GroupShape, RowBlock


def lora_delta(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    shape: GroupShape,
    plan: GroupPlan,
) -> torch.Tensor:
    """What the adapters of one step add to the outputs of one group of one layer.

    x  [rows, in], the pool's dtype        a  [pages, slices, 8, in]       b  [pages, 8, sum(out)]
    Returns [rows, sum(out)] in x's dtype; rows without an adapter are zeros.
    Raises ValueError on any shape or dtype that does not fit: nothing is cast or trimmed.
    """
    _check(x, a, b, shape, plan)
    if plan.blocks[0].rows == plan.rows:
        return _product(x, a, b, shape, plan.blocks[0])
    y = x.new_zeros(x.shape[0], shape.out_total)
    for block in plan.blocks:
        rows = slice(block.first, block.first + block.rows)
        y[rows] = _product(x[rows], a, b, shape, block)
    return y


def _product(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, shape: GroupShape, block: RowBlock
) -> torch.Tensor:
    """[rows, sum(out)] of one block."""
    rows, pages = block.weights.shape
    down = a.index_select(0, block.pages).view(-1, shape.in_features)
    h = (x @ down.T).view(rows, pages, shape.slices, PAGE_RANKS)
    h = (h * block.weights[:, :, None, None]).transpose(1, 2)  # [rows, slices, pages, 8]
    up = b.index_select(0, block.pages).view(pages * PAGE_RANKS, shape.out_total)
    parts = [
        h[:, part].reshape(rows, -1) @ columns
        for part, columns in enumerate(up.split(shape.out_features, dim=1))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _check(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, shape: GroupShape, plan: GroupPlan
) -> None:
    if x.ndim != 2 or x.shape[1] != shape.in_features:
        raise ValueError(f"x is {tuple(x.shape)}, expected [rows, {shape.in_features}]")
    if x.shape[0] != plan.rows:
        raise ValueError(f"x has {x.shape[0]} rows, the plan has {plan.rows} rows")
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{a.shape[0]} A pages but {b.shape[0]} B pages")
    if a.shape[1:] != shape.a_page:
        raise ValueError(f"A pages are {tuple(a.shape[1:])} for {shape}")
    if b.shape[1:] != shape.b_page:
        raise ValueError(f"B pages are {tuple(b.shape[1:])} for {shape}")
    dtypes = {x.dtype, a.dtype, b.dtype, *(block.weights.dtype for block in plan.blocks)}
    if len(dtypes) != 1:
        raise ValueError(f"dtypes differ among x, A, B and the weights: {dtypes}")

"""The LoRA product in plain torch: the oracle, and the path taken on CPU."""

from __future__ import annotations

import torch

from inference_node.kernels.lora.contract import PAGE_RANKS, GroupPlan, GroupShape


def lora_shrink(
    x: torch.Tensor, a: torch.Tensor, shape: GroupShape, plan: GroupPlan
) -> tuple[torch.Tensor, ...]:
    """Each row times the A pages it reads, scaled; zero at the pages it does not read.

    x  [rows, in], the pool's dtype        a  [pages, slices, 8, in]
    Returns [slices, block rows, block pages * 8] for every block of the plan.
    Raises ValueError on any shape or dtype that does not fit: nothing is cast or trimmed.
    """
    if x.ndim != 2 or x.shape[1] != shape.in_features:
        raise ValueError(f"x is {tuple(x.shape)}, expected [rows, {shape.in_features}]")
    if x.shape[0] != plan.rows:
        raise ValueError(f"x has {x.shape[0]} rows, the step was planned for {plan.rows} rows")
    if a.shape[1:] != shape.a_page:
        raise ValueError(f"A pages are {tuple(a.shape[1:])} for {shape}")
    _check_dtypes(x, a, plan)
    found = []
    for block in plan.blocks:
        rows, pages = block.weights.shape
        down = a.index_select(0, block.pages).view(-1, shape.in_features)
        h = (x[block.first : block.first + rows] @ down.T).view(rows, pages, -1, PAGE_RANKS)
        h = (h * block.weights[:, :, None, None]).permute(2, 0, 1, 3)
        found.append(h.reshape(shape.slices, rows, pages * PAGE_RANKS))
    return tuple(found)


def lora_expand_add(
    y: torch.Tensor,
    shrunk: tuple[torch.Tensor, ...],
    b: torch.Tensor,
    shape: GroupShape,
    plan: GroupPlan,
    *,
    part: int,
) -> None:
    """Add to y, in place, what the adapters make of slice `part`.

    y  [rows, out of the slice]        shrunk  of `lora_shrink`        b  [pages, 8, sum(out)]
    Raises ValueError as `lora_shrink` does.
    """
    if y.shape != (plan.rows, shape.out_features[part]):
        raise ValueError(f"y is {tuple(y.shape)}, the step has {plan.rows} rows of {shape}")
    if b.shape[1:] != shape.b_page:
        raise ValueError(f"B pages are {tuple(b.shape[1:])} for {shape}")
    _check_dtypes(y, b, plan)
    first = sum(shape.out_features[:part])
    columns = b[:, :, first : first + shape.out_features[part]]
    for block, h in zip(plan.blocks, shrunk, strict=True):
        up = columns.index_select(0, block.pages).view(-1, shape.out_features[part])
        y[block.first : block.first + block.rows].addmm_(h[part], up)


def lora_delta(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    shape: GroupShape,
    plan: GroupPlan,
) -> torch.Tensor:
    """What the adapters of one step add to all outputs of one group of one layer.

    Returns [rows, sum(out)] in x's dtype; rows without an adapter are zeros. Raises ValueError.
    """
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{a.shape[0]} A pages but {b.shape[0]} B pages")
    shrunk = lora_shrink(x, a, shape, plan)
    parts = [x.new_zeros(plan.rows, out) for out in shape.out_features]
    for part, y in enumerate(parts):
        lora_expand_add(y, shrunk, b, shape, plan, part=part)
    return torch.cat(parts, dim=1)


def _check_dtypes(rows: torch.Tensor, pages: torch.Tensor, plan: GroupPlan) -> None:
    dtypes = {rows.dtype, pages.dtype, *(block.weights.dtype for block in plan.blocks)}
    if len(dtypes) != 1:
        raise ValueError(f"dtypes differ: {sorted(map(str, dtypes))}")

"""The LoRA product in plain torch: the oracle, and the path taken on CPU."""

from __future__ import annotations

import torch

from inference_node.kernels.lora.contract import (
    PAGE_RANKS,
    GroupPlan,
    GroupPool,
    GroupShape,
    RowBlock,
    RowPages,
)


def gather_a(a: torch.Tensor, shape: GroupShape, plan: GroupPlan) -> tuple[torch.Tensor, ...]:
    """The A pages every block reads, one under the other: [block pages * slices * 8, in] each.

    a  [pages, slices, 8, in]. Raises ValueError on another shape.
    """
    if a.shape[1:] != shape.a_page:
        raise ValueError(f"A pages are {tuple(a.shape[1:])} for {shape}")
    return tuple(
        a.index_select(0, block.pages).view(-1, shape.in_features) for block in plan.blocks
    )


def gather_b(
    b: torch.Tensor, shape: GroupShape, plan: GroupPlan, *, part: int
) -> tuple[torch.Tensor, ...]:
    """Slice `part` of the B pages every block reads: [block pages * 8, out of the slice] each.

    b  [pages, 8, sum(out)]. Raises ValueError on another shape.
    """
    if b.shape[1:] != shape.b_page:
        raise ValueError(f"B pages are {tuple(b.shape[1:])} for {shape}")
    first, out = sum(shape.out_features[:part]), shape.out_features[part]
    columns = b[:, :, first : first + out]
    return tuple(columns.index_select(0, block.pages).view(-1, out) for block in plan.blocks)


def lora_shrink(
    x: torch.Tensor, downs: tuple[torch.Tensor, ...], shape: GroupShape, plan: GroupPlan
) -> tuple[torch.Tensor, ...]:
    """Each row times the A pages it reads, scaled; zero at the pages it does not read.

    x  [rows, in], the pool's dtype        downs  of `gather_a`
    Returns [slices, block rows, block pages * 8] for every block of the plan.
    Raises ValueError on any shape or dtype that does not fit: nothing is cast or trimmed.
    """
    if x.ndim != 2 or x.shape[1] != shape.in_features:
        raise ValueError(f"x is {tuple(x.shape)}, expected [rows, {shape.in_features}]")
    if x.shape[0] != plan.rows:
        raise ValueError(f"x has {x.shape[0]} rows, the step was planned for {plan.rows} rows")
    found = []
    for block, down in zip(plan.blocks, downs, strict=True):
        _check_dtypes(x, down, block)
        rows, pages = block.weights.shape
        h = (x[block.first : block.first + rows] @ down.T).view(rows, pages, -1, PAGE_RANKS)
        h = (h * block.weights[:, :, None, None]).permute(2, 0, 1, 3)
        found.append(h.reshape(shape.slices, rows, pages * PAGE_RANKS))
    return tuple(found)


def lora_expand_add(
    y: torch.Tensor,
    shrunk: tuple[torch.Tensor, ...],
    ups: tuple[torch.Tensor, ...],
    plan: GroupPlan,
    *,
    part: int,
) -> None:
    """Add to y, in place, what the adapters make of slice `part`.

    y  [rows, out of the slice]    shrunk  of `lora_shrink`    ups  of `gather_b` for that slice
    Raises ValueError as `lora_shrink` does.
    """
    for block, h, up in zip(plan.blocks, shrunk, ups, strict=True):
        if y.shape != (plan.rows, up.shape[1]):
            raise ValueError(f"y is {tuple(y.shape)}, expected [{plan.rows}, {up.shape[1]}]")
        _check_dtypes(y, up, block)
        y[block.first : block.first + block.rows].addmm_(h[part], up)


def shrink_rows(x: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages) -> torch.Tensor:
    """Each pair's row times its A page, scaled; summed in float32.

    x  [rows, in], the pool's dtype
    Returns [pairs, slices, 8] float32. Raises ValueError on another shape or dtype.
    """
    if x.ndim != 2 or x.shape[1] != pool.shape.in_features or x.dtype != pool.a.dtype:
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype} for {pool.shape} {pool.a.dtype}")
    pages = pool.a[rows.page.long(), layer].float()  # [pairs, slices, 8, in]
    h = torch.einsum("pi,psri->psr", x[rows.row.long()].float(), pages)
    return h * rows.scale[:, None, None]


def expand_add_rows(
    y: torch.Tensor, h: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
) -> None:
    """Add to y, in place, what each row's pairs make of every slice; rounded once.

    y  [rows, sum(out)], the pool's dtype    h  of `shrink_rows`
    Raises ValueError as `shrink_rows` does.
    """
    if y.ndim != 2 or y.shape[1] != pool.shape.out_total or y.dtype != pool.b.dtype:
        raise ValueError(f"y is {tuple(y.shape)} {y.dtype} for {pool.shape} {pool.b.dtype}")
    pages = pool.b[rows.page.long(), layer].float()  # [pairs, 8, sum(out)]
    parts = pages.split(pool.shape.out_features, dim=-1)
    delta = torch.cat(
        [torch.einsum("pr,pro->po", h[:, part], up) for part, up in enumerate(parts)], dim=1
    )
    y.copy_(y.float().index_add_(0, rows.row.long(), delta))


def lora_delta(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    shape: GroupShape,
    plan: GroupPlan,
) -> torch.Tensor:
    """What the adapters of one step add to all outputs of one group of one layer, by blocks alone.

    Returns [rows, sum(out)] in x's dtype; rows without an adapter are zeros. Raises ValueError.
    """
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{a.shape[0]} A pages but {b.shape[0]} B pages")
    if plan.single is not None:
        raise ValueError("the plan reads pages in place")
    shrunk = lora_shrink(x, gather_a(a, shape, plan), shape, plan)
    parts = [x.new_zeros(plan.rows, out) for out in shape.out_features]
    for part, y in enumerate(parts):
        lora_expand_add(y, shrunk, gather_b(b, shape, plan, part=part), plan, part=part)
    return torch.cat(parts, dim=1)


def _check_dtypes(rows: torch.Tensor, pages: torch.Tensor, block: RowBlock) -> None:
    if not rows.dtype == pages.dtype == block.weights.dtype:
        dtypes = sorted(map(str, (rows.dtype, pages.dtype, block.weights.dtype)))
        raise ValueError(f"dtypes differ: {dtypes}")

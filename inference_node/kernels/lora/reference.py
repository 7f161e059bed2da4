"""The LoRA product in plain torch: the oracle, and the path taken on CPU."""

from __future__ import annotations

import torch

from inference_node.kernels.lora.contract import PAGE_RANKS, GroupPlan, GroupShape


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
    _check(x, a, b, shape)
    y = x.new_zeros(x.shape[0], shape.out_total)
    if plan.pair_rows.numel():
        short = _pairs(x, a, b, shape, plan)
        if plan.one_page_a_row:
            y = short
        else:
            y.index_add_(0, plan.pair_rows, short)
    for first, count, pages, scale in plan.segments:
        y[first : first + count] = _segment(x[first : first + count], a, b, shape, pages, scale)
    return y


def _pairs(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, shape: GroupShape, plan: GroupPlan
) -> torch.Tensor:
    """Every (row, page) pair on its own: [pairs, sum(out)]."""
    pairs = plan.pair_rows.shape[0]
    rows = x if plan.one_page_a_row else x.index_select(0, plan.pair_rows)
    down = a.index_select(0, plan.pair_pages).view(pairs, shape.slices * PAGE_RANKS, -1)
    h = torch.bmm(down, rows.unsqueeze(2)).view(pairs, shape.slices, 1, PAGE_RANKS)
    h = h * plan.pair_scale.to(h.dtype).view(pairs, 1, 1, 1)
    up = b.index_select(0, plan.pair_pages)  # [pairs, 8, sum(out)]
    parts = [
        torch.bmm(h[:, j], columns) for j, columns in enumerate(up.split(shape.out_features, dim=2))
    ]
    return torch.cat(parts, dim=2).squeeze(1)


def _segment(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    shape: GroupShape,
    pages: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Rows that share one adapter: [rows, sum(out)]."""
    rank = pages.shape[0] * PAGE_RANKS
    down = a.index_select(0, pages).transpose(0, 1).reshape(shape.slices, rank, -1)
    up = b.index_select(0, pages).view(rank, -1)  # [rank, sum(out)]
    parts = [
        ((x @ down[j].T) * scale) @ columns
        for j, columns in enumerate(up.split(shape.out_features, dim=1))
    ]
    return torch.cat(parts, dim=1)


def _check(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, shape: GroupShape) -> None:
    if x.ndim != 2 or x.shape[1] != shape.in_features:
        raise ValueError(f"x is {tuple(x.shape)}, expected [rows, {shape.in_features}]")
    if a.shape[1:] != (shape.slices, PAGE_RANKS, shape.in_features):
        raise ValueError(f"A pages are {tuple(a.shape[1:])} for {shape}")
    if b.shape[1:] != (PAGE_RANKS, shape.out_total):
        raise ValueError(f"B pages are {tuple(b.shape[1:])} for {shape}")
    if not x.dtype == a.dtype == b.dtype:
        raise ValueError(f"dtypes differ: x {x.dtype}, A {a.dtype}, B {b.dtype}")

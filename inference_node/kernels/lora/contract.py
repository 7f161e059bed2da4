"""Shapes the LoRA operators agree on, and the routing of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

PAGE_RANKS = 8
"""Ranks one page holds."""


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Linears that read the same input: their A factors share a page, their B factors another."""

    in_features: int
    out_features: tuple[int, ...]
    """One entry per slice, in the order the slices lie in a page."""

    @property
    def slices(self) -> int:
        return len(self.out_features)

    @property
    def out_total(self) -> int:
        return sum(self.out_features)

    @property
    def a_page(self) -> tuple[int, int, int]:
        """Shape of one layer of an A page: [slices, 8, in]."""
        return (self.slices, PAGE_RANKS, self.in_features)

    @property
    def b_page(self) -> tuple[int, int]:
        """Shape of one layer of a B page: [8, sum(out)]."""
        return (PAGE_RANKS, self.out_total)

    def page_elements(self, layers: int) -> int:
        """Elements of one page, A and B together."""
        return layers * (prod(self.a_page) + prod(self.b_page))


@dataclass(frozen=True, slots=True)
class GroupPool:
    """The pool tensors of one group. Page 0 is zeros."""

    shape: GroupShape
    a: torch.Tensor  # [pages, layers, slices, 8, in]
    b: torch.Tensor  # [pages, layers, 8, sum(out)]


@dataclass(frozen=True, slots=True)
class SlotPages:
    """One adapter as a step sees it: its pages in every group, and its scale."""

    pages: tuple[tuple[int, ...], ...]  # [groups][pages of this adapter]
    scale: float


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Routing of one step in one group, as tensors on the pool's device.

    Rows of short segments are expanded to (row, page) pairs and run as one batch; each long segment
    runs as two matrix products over its gathered pages.
    """

    pair_rows: torch.Tensor  # [pairs] int64, row of each pair, ascending
    pair_pages: torch.Tensor  # [pairs] int64
    pair_scale: torch.Tensor  # [pairs] float32
    one_page_a_row: bool
    """Every row occurs exactly once in pair_rows: no accumulation is needed."""
    segments: tuple[tuple[int, int, torch.Tensor, float], ...]
    """Long runs of rows with one adapter: (first row, rows, page ids [pages] int64, scale)."""


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """Which pages every row of a step reads. Built for that step, used in it, dropped after it."""

    rows: int
    groups: tuple[GroupPlan | None, ...]
    """None where no adapter of the step touches the group."""

    LONG_SEGMENT = 8

    @classmethod
    def build(
        cls,
        segments: Sequence[tuple[int, int, SlotPages | None]],
        *,
        groups: int,
        device: torch.device,
    ) -> LoraPlan | None:
        """`segments` are (first row, rows, adapter or None for the base), covering every row.

        Returns None when no row has an adapter.
        """
        rows = sum(count for _, count, _ in segments)
        plans = tuple(cls._group(segments, rows, group, device) for group in range(groups))
        return cls(rows, plans) if any(plan is not None for plan in plans) else None

    @classmethod
    def _group(
        cls,
        segments: Sequence[tuple[int, int, SlotPages | None]],
        rows: int,
        group: int,
        device: torch.device,
    ) -> GroupPlan | None:
        pair_rows: list[int] = []
        pair_pages: list[int] = []
        pair_scale: list[float] = []
        long: list[tuple[int, int, torch.Tensor, float]] = []
        single = True
        for first, count, slot in segments:
            pages = slot.pages[group] if slot is not None else ()
            if slot is None or not pages:
                single = False
                continue
            if count >= cls.LONG_SEGMENT:
                long.append((first, count, torch.tensor(pages, device=device), slot.scale))
                single = False
                continue
            single = single and len(pages) == 1
            for row in range(first, first + count):
                pair_rows.extend([row] * len(pages))
                pair_pages.extend(pages)
                pair_scale.extend([slot.scale] * len(pages))
        if not pair_rows and not long:
            return None
        return GroupPlan(
            torch.tensor(pair_rows, dtype=torch.int64, device=device),
            torch.tensor(pair_pages, dtype=torch.int64, device=device),
            torch.tensor(pair_scale, dtype=torch.float32, device=device),
            single and len(pair_rows) == rows,
            tuple(long),
        )

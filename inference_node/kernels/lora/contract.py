"""Shapes the LoRA operators agree on, and the routing of one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import torch

PAGE_RANKS = 8
"""Ranks one page holds."""
BLOCK_WORK = 512
"""Rows times pages of one block. In a block every row meets every page, most of them with weight
zero: cheaper than a product a row while a block is small, dearer when it is large."""
TILE_ROWS = 32
"""Rows of one adapter that a kernel reading pages in place takes at a time."""


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
    stamp: int
    """Distinct for every filling of pages: pages with equal stamps hold equal bytes."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive rows, and every page any of them reads, each page once."""

    first: int
    rows: int
    pages: torch.Tensor  # [pages] int64
    weights: torch.Tensor  # [rows, pages]: the adapter's scale where the row reads the page, else 0


@dataclass(frozen=True, slots=True)
class RowPages:
    """Rows that each read their own pages in place: one (row, page) pair for every page read.

    Tensors may be longer than a step needs: pairs past the last run read page 0, and runs and tiles
    past the last end where they begin.
    """

    first: torch.Tensor  # [runs + 1] int32: pairs first[i] to first[i + 1] are one row's
    row: torch.Tensor  # [pairs] int32, ascending
    page: torch.Tensor  # [pairs] int32
    scale: torch.Tensor  # [pairs] float32
    tile: torch.Tensor  # [tiles + 1] int32: runs tile[i] to tile[i + 1] read the same pages, and
    # their rows lie one under the other
    widest: int
    """No row reads more pages."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Routing of one step in one group. A row without an adapter is in neither part."""

    rows: int
    """Rows of the step."""
    blocks: tuple[RowBlock, ...]
    """Rows that go through the pages of their block, gathered; none in a plan `in_place`."""
    single: RowPages | None = None
    """Rows that read their pages in place."""


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """Which pages every row of a step reads. Built for that step, used in it, dropped after it."""

    groups: tuple[GroupPlan | None, ...]
    """None where no adapter of the step touches the group."""
    content: tuple[tuple[int, ...], ...]
    """Stamps of the adapters of every block: steps with equal content read equal pages."""

    @classmethod
    def build(
        cls,
        segments: Sequence[tuple[int, int, SlotPages | None]],
        *,
        groups: int,
        device: torch.device,
        dtype: torch.dtype,
        in_place: bool = False,
    ) -> LoraPlan | None:
        """`segments` are (first row, rows, adapter or None for the base), covering every row.

        With `in_place`, rows read their pages where they lie; it takes a kernel that can
        (`shrink_rows`, `expand_add_rows`). Returns None when no row has an adapter.
        """
        if all(slot is None for _, _, slot in segments):
            return None
        rows = sum(count for _, count, _ in segments)
        batches = [] if in_place else _batches(segments)
        plans = []
        for group in range(groups):
            made = (_block(batch, group, device=device, dtype=dtype) for batch in batches)
            blocks = tuple(block for block in made if block is not None)
            single = _row_pages(segments, group, device=device) if in_place else None
            plans.append(GroupPlan(rows, blocks, single) if blocks or single else None)
        content = tuple(
            tuple(slot.stamp for _, _, slot in batch if slot is not None) for batch in batches
        )
        return cls(tuple(plans), content) if any(plans) else None


_Segment = tuple[int, int, SlotPages | None]


def _batches(segments: Sequence[_Segment]) -> list[list[_Segment]]:
    """Neighbours together, in row order, while their block stays within BLOCK_WORK."""
    batches: list[list[_Segment]] = []
    rows = pages = following = 0
    for segment in segments:
        first, count, slot = segment
        more = max(map(len, slot.pages)) if slot is not None else 0
        if not batches or first != following or (rows + count) * (pages + more) > BLOCK_WORK:
            batches.append([])
            rows = pages = 0
        following = first + count
        batches[-1].append(segment)
        rows += count
        pages += more
    return batches


def _block(
    batch: Sequence[_Segment], group: int, *, device: torch.device, dtype: torch.dtype
) -> RowBlock | None:
    first = batch[0][0]
    rows = sum(count for _, count, _ in batch)
    columns: dict[int, int] = {}
    for _, _, slot in batch:
        for page in slot.pages[group] if slot is not None else ():
            columns.setdefault(page, len(columns))
    if not columns:
        return None
    weights = torch.zeros(rows, len(columns), dtype=dtype)
    for start, count, slot in batch:
        if slot is not None:
            own = [columns[page] for page in slot.pages[group]]
            weights[start - first : start - first + count, own] = slot.scale
    pages = torch.tensor(list(columns), dtype=torch.int64)
    return RowBlock(first, rows, pages.to(device), weights.to(device))


@dataclass(slots=True)
class PairList:
    """`RowPages` as it is being written."""

    first: list[int] = field(default_factory=lambda: [0])
    row: list[int] = field(default_factory=list)
    page: list[int] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    tile: list[int] = field(default_factory=lambda: [0])

    def add(self, start: int, count: int, pages: tuple[int, ...], scale: float) -> None:
        """`count` rows from `start` on read these pages."""
        for line in range(start, start + count):
            self.row += [line] * len(pages)
            self.first.append(len(self.row))
        self.page += pages * count
        self.scale += [scale] * (len(pages) * count)
        begun = self.tile[-1]
        self.tile += [*range(begun + TILE_ROWS, begun + count, TILE_ROWS), begun + count]


def list_pairs(segments: Sequence[_Segment], group: int) -> PairList:
    """Every page that a row of the step reads in one group; rows of one adapter are tiles."""
    pairs = PairList()
    for start, count, slot in _merged(segments):
        if slot is not None and slot.pages[group]:
            pairs.add(start, count, slot.pages[group], slot.scale)
    return pairs


def _merged(segments: Sequence[_Segment]) -> Iterator[_Segment]:
    """Neighbouring segments of one adapter as one."""
    held: _Segment | None = None
    for start, count, slot in segments:
        if held is not None and held[2] == slot and held[0] + held[1] == start:
            held = (held[0], held[1] + count, slot)
            continue
        if held is not None:
            yield held
        held = (start, count, slot)
    if held is not None:
        yield held


def _row_pages(
    segments: Sequence[_Segment], group: int, *, device: torch.device
) -> RowPages | None:
    pairs = list_pairs(segments, group)
    if not pairs.row:
        return None

    def index(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return RowPages(
        index(pairs.first),
        index(pairs.row),
        index(pairs.page),
        torch.tensor(pairs.scale, dtype=torch.float32, device=device),
        index(pairs.tile),
        max(end - begin for begin, end in pairwise(pairs.first)),
    )

"""The LoRA product on a GPU: two launches a group, pages read where they lie, at their true rank.

Imported where Triton is: `backend.choose` does so on CUDA. Semantics are `reference`'s; h stays in
as many shares as the inputs are cut into, and `expand_add_rows` sums them in their order.

Grids follow from sizes alone, never from contents, so a captured launch serves whatever its
operands hold later. Few rows go pair by pair; from TILED_FROM runs on, rows of one adapter share
what they read. A row does not depend on its neighbours where the kind of launch stays the same.
After Punica (arXiv 2310.18547) and S-LoRA (arXiv 2311.03285).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from triton import knobs, next_power_of_2

from inference_node.kernels.lora import programs
from inference_node.kernels.lora.contract import PAGE_RANKS, GroupPool, GroupShape, RowPages

TILED_FROM = 16
"""Runs from which rows go in tiles: fewer cannot fill a tensor core."""
_LONG = 8
"""Runs to a tile from which the step is mostly prompts."""
_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Launch:
    """How one launch cuts its work; a kernel variant for each."""

    rows: int
    """Rows a program takes at once; 1 for a program a pair."""
    split_in: int
    """Inputs a program of the shrink sums up; more where there would be over `most` shares."""
    most: int
    block_in: int
    block_out: int
    warps: int = 4
    stages: int = 3

    def cut(self, width: int) -> tuple[int, int]:
        """How many shares `width` inputs have, and how many inputs a share has."""
        share = max(self.split_in, next_power_of_2(-(-width // self.most)))
        share = min(share, -(-width // self.block_in) * self.block_in)
        return -(-width // share), share


PAIRS = Launch(rows=1, split_in=512, most=8, block_in=256, block_out=512, stages=2)
DECODE = Launch(rows=16, split_in=512, most=8, block_in=256, block_out=256)
PROMPT = Launch(rows=32, split_in=2048, most=4, block_in=128, block_out=128)


def launch_of(rows: RowPages) -> Launch:
    """The launch for a step, by its sizes."""
    runs, tiles = rows.first.shape[0] - 1, rows.tile.shape[0] - 1
    if runs < TILED_FROM:
        return PAIRS
    return PROMPT if runs >= _LONG * tiles else DECODE


@dataclass(slots=True)
class FusedRows:
    """`RowKernels` in Triton."""

    launch: Launch | None = None
    """Take this one for every step, for measurements and tests."""
    _strips: dict[tuple[GroupShape, int, torch.device], torch.Tensor] = field(default_factory=dict)

    def shrink_rows(
        self, x: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> torch.Tensor:
        """`reference.shrink_rows`, in shares: [splits, pairs, slices, 8] float32."""
        shape, pairs = pool.shape, rows.row.shape[0]
        _check(x, pool.a, shape.in_features)
        launch = self.launch or launch_of(rows)
        width = shape.slices * PAGE_RANKS
        splits, share = launch.cut(shape.in_features)
        h = x.new_empty(splits, pairs, shape.slices, PAGE_RANKS, dtype=torch.float32)
        sizes = {
            "IN": shape.in_features,
            "WIDTH": width,
            "RANKS": max(16, next_power_of_2(width)),
            "BLOCK_IN": launch.block_in,
            "SPLIT_IN": share,
            "num_warps": launch.warps,
            "num_stages": launch.stages,
        }
        routing = (rows.row, rows.page, rows.scale, pairs, x.stride(0), pool.a.stride(0))
        a = pool.a[:, layer]
        if launch.rows == 1:
            programs.shrink_pairs[pairs, splits](h, x, a, *routing, **sizes)
        else:
            grid = (rows.tile.shape[0] - 1, rows.widest, splits)
            programs.shrink_tiles[grid](
                h, x, a, rows.tile, rows.first, *routing, ROWS=launch.rows, EXACT=_exact(x), **sizes
            )
        return h

    def expand_add_rows(
        self, y: torch.Tensor, h: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> None:
        """`reference.expand_add_rows`, of an h in shares."""
        shape, pairs = pool.shape, rows.row.shape[0]
        _check(y, pool.b, shape.out_total)
        if h.ndim != 4 or h.shape[1:] != (pairs, shape.slices, PAGE_RANKS):
            raise ValueError(f"h is {tuple(h.shape)} for {pairs} pairs of {shape}")
        launch = self.launch or launch_of(rows)
        block_out = min(launch.block_out, max(16, next_power_of_2(max(shape.out_features))))
        strips = self._strips_of(shape, block_out, y.device)
        sizes = {
            "OUT": shape.out_total,
            "WIDTH": shape.slices * PAGE_RANKS,
            "BLOCK_OUT": block_out,
            "SPLITS": h.shape[0],
            "ALIGNED": _alignment(shape),
            "num_warps": launch.warps,
            "num_stages": launch.stages,
        }
        routing = (rows.first, rows.row, rows.page, strips, pairs, y.stride(0), pool.b.stride(0))
        b = pool.b[:, layer]
        if launch.rows == 1:
            programs.expand_runs[rows.first.shape[0] - 1, len(strips)](
                y, h, b, *routing, SPLITS_ROUNDED=next_power_of_2(h.shape[0]), **sizes
            )
        else:
            programs.expand_tiles[rows.tile.shape[0] - 1, len(strips)](
                y, h, b, rows.tile, *routing, ROWS=launch.rows, EXACT=_exact(y), **sizes
            )

    def _strips_of(self, shape: GroupShape, block: int, device: torch.device) -> torch.Tensor:
        """[strips, 3] int32: slice, first column and end of the slice. Made once: a captured launch
        must find it where it was."""
        key = (shape, block, device)
        if key not in self._strips:
            strips, first = [], 0
            for part, out in enumerate(shape.out_features):
                strips += [
                    (part, column, first + out) for column in range(first, first + out, block)
                ]
                first += out
            self._strips[key] = torch.tensor(strips, dtype=torch.int32, device=device)
        return self._strips[key]


def _alignment(shape: GroupShape) -> int:
    """The largest power of two up to 16 that divides where every slice begins and ends."""
    aligned = 16
    while any(out % aligned for out in shape.out_features):
        aligned //= 2
    return aligned


def interpreted() -> bool:
    """Whether Triton interprets programs, as it does for tests where there is no card."""
    return bool(knobs.runtime.interpret)


def _exact(rows: torch.Tensor) -> bool:
    """Whether products are float32 ones: the interpreter knows no others."""
    return rows.dtype is torch.float32 or interpreted()


def _check(rows: torch.Tensor, pages: torch.Tensor, width: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != width or rows.stride(1) != 1:
        raise ValueError(f"rows are {tuple(rows.shape)}, expected [rows, {width}] row by row")
    if rows.dtype != pages.dtype or rows.dtype not in _DTYPES:
        raise ValueError(f"dtypes differ or are not supported: {rows.dtype}, {pages.dtype}")
    if rows.device != pages.device or not pages[0].is_contiguous():
        raise ValueError(f"pages on {pages.device} in one piece each for rows on {rows.device}")

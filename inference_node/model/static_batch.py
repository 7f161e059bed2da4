"""The inputs of a decode step at addresses that never change, for a step that is captured once.

Rows beyond those of the step are padding: they have no adapter, see one token, and keep it in a
block of their own that no sequence has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from inference_node.kernels.lora import GroupPlan, LoraPlan, RowPages, SlotPages
from inference_node.kernels.lora.contract import list_pairs
from inference_node.kernels.paged_attention import AttentionPlan
from inference_node.model.batch import ForwardBatch

_ALIGNED = 16
"""Bytes: what a kernel may count on of an address."""


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """The next token of one sequence."""

    token: int
    """0 where `source` has it."""
    position: int
    block_table: Sequence[int]
    slot: SlotPages | None
    source: int | None = None
    """The row of the step before that draws the token, which the host does not know yet."""


@dataclass(frozen=True, slots=True)
class StaticSizes:
    """What the steps of one engine have in common."""

    groups: int
    widest: int
    """Pages a row may read in a group."""
    blocks: int
    """Blocks a sequence may have."""
    block_tokens: int
    spare_block: int
    """Where padding rows keep their token."""


class StaticBatch:
    """One step of up to `rows` rows: filled on the host, sent to the device in one copy.

    There are two host sides, filled in turn: one may still be on its way while the other is filled.
    """

    def __init__(self, rows: int, sizes: StaticSizes, *, lora: bool, device: torch.device) -> None:
        """`lora`: whether rows may have adapters."""
        self.rows, self.sizes, self.lora = rows, sizes, lora
        self._fields = _fields(rows, sizes, lora)
        size = max(start + _bytes(kind, shape) for start, kind, shape in self._fields.values())
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._views = [
            {name: view.numpy() for name, view in _views(host, self._fields).items()}
            for host in self._hosts
        ]
        self.on_device = torch.zeros(size, dtype=torch.uint8, device=device)
        """All inputs in one piece; `batch` is views of it."""
        views = _views(self.on_device, self._fields)
        self.batch, self.source = self._batch(views), views["source"]
        self.send(self.fill([]))

    def fill(self, step: Sequence[DecodeRow]) -> torch.Tensor:
        """Write the step on a host side, which is returned, to be sent.

        Rows of one adapter side by side share what they read. At most one host side that was filled
        before may still be on its way.
        """
        self._hosts.reverse()
        self._views.reverse()
        at, count, sizes = self._views[0], len(step), self.sizes
        at["token_ids"][:] = 0
        at["positions"][:] = 0
        at["contexts"][:] = 1
        at["table"][:] = 0
        at["table"][count:, 0] = sizes.spare_block
        at["slots"][:] = sizes.spare_block * sizes.block_tokens
        at["source"][:] = -1
        at["token_ids"][:count] = [row.token for row in step]
        at["source"][:count] = [-1 if row.source is None else row.source for row in step]
        for index, row in enumerate(step):
            block, offset = divmod(row.position, sizes.block_tokens)
            at["positions"][index] = row.position
            at["contexts"][index] = row.position + 1
            at["slots"][index] = row.block_table[block] * sizes.block_tokens + offset
            at["table"][index, : block + 1] = row.block_table[: block + 1]
        for group in range(sizes.groups if self.lora else 0):
            pairs = list_pairs([(i, 1, row.slot) for i, row in enumerate(step)], group)
            for name, values in (("first", pairs.first), ("tile", pairs.tile)):
                at[f"{name}{group}"][: len(values)] = values
                at[f"{name}{group}"][len(values) :] = values[-1]
            for name, some in (("row", pairs.row), ("page", pairs.page), ("scale", pairs.scale)):
                at[f"{name}{group}"][: len(some)] = some
                at[f"{name}{group}"][len(some) :] = 0
        return self._hosts[0]

    def send(self, filled: torch.Tensor) -> None:
        """Copy a host side to the device, in the order of the current stream."""
        self.on_device.copy_(filled, non_blocking=True)

    def _batch(self, on: Mapping[str, torch.Tensor]) -> ForwardBatch:
        sizes = self.sizes
        attention = AttentionPlan(
            slots=on["slots"],
            decode_rows=self.rows,
            decode_blocks=on["table"],
            decode_contexts=on["contexts"],
            decode_mask=None,
            long=(),
            longest=sizes.blocks * sizes.block_tokens,
        )
        groups = tuple(
            GroupPlan(
                self.rows,
                (),
                RowPages(
                    on[f"first{group}"],
                    on[f"row{group}"],
                    on[f"page{group}"],
                    on[f"scale{group}"],
                    on[f"tile{group}"],
                    sizes.widest,
                ),
            )
            for group in range(sizes.groups)
            if self.lora
        )
        every = torch.arange(self.rows, device=self.on_device.device)
        lora = LoraPlan(groups, ()) if self.lora else None
        return ForwardBatch(on["token_ids"], on["positions"], attention, lora, every)


_Field = tuple[int, torch.dtype, tuple[int, ...]]


def _fields(rows: int, sizes: StaticSizes, lora: bool) -> dict[str, _Field]:
    """Name -> (first byte, dtype, shape)."""
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in ("token_ids", "source", "positions", "slots", "contexts"):
        wanted[name] = (torch.int64, (rows,))
    wanted["table"] = (torch.int64, (rows, sizes.blocks))
    for group in range(sizes.groups if lora else 0):
        for name in ("first", "tile"):
            wanted[f"{name}{group}"] = (torch.int32, (rows + 1,))
        for name in ("row", "page"):
            wanted[f"{name}{group}"] = (torch.int32, (rows * sizes.widest,))
        wanted[f"scale{group}"] = (torch.float32, (rows * sizes.widest,))
    fields: dict[str, _Field] = {}
    start = 0
    for name, (dtype, shape) in wanted.items():
        fields[name] = (start, dtype, shape)
        start += -(-_bytes(dtype, shape) // _ALIGNED) * _ALIGNED
    return fields


def _views(raw: torch.Tensor, fields: Mapping[str, _Field]) -> dict[str, torch.Tensor]:
    return {
        name: raw[start : start + _bytes(dtype, shape)].view(dtype).view(shape)
        for name, (start, dtype, shape) in fields.items()
    }


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * prod(shape)

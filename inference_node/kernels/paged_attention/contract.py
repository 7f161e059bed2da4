"""The attention routing of one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Chunk:
    """The new tokens of one sequence in one step."""

    block_table: tuple[int, ...]
    start: int
    """Position of the first new token."""
    length: int

    @property
    def context(self) -> int:
        return self.start + self.length

    def runs_by_row(self, longest: int) -> bool:
        """Whether each of its rows is attended like a single token, up to a `longest` context."""
        return self.length == 1 or self.context <= longest

    def rows(self) -> Iterator[Chunk]:
        """Its tokens one by one, each with what it sees."""
        if self.length == 1:
            yield self
            return
        for position in range(self.start, self.context):
            yield Chunk(self.block_table, position, 1)


@dataclass(frozen=True, slots=True)
class LongChunk:
    """A chunk of more than one token, run on its own."""

    first_row: int
    length: int
    context: int
    blocks: torch.Tensor  # [blocks] int64
    mask: torch.Tensor | None  # [length, context] bool, True = visible; None for a whole prompt

    def within(self, window: int) -> LongChunk:
        """The chunk where every token sees `window` keys, its own the last of them."""
        device = self.blocks.device
        places = torch.arange(self.context, device=device)
        own = places[self.context - self.length :, None]
        return replace(self, mask=(places <= own) & (places > own - window))


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Rows that see one context each come first and run as one batch; longer chunks follow one by
    one. The first are the single tokens, and those of chunks that are run row by row."""

    slots: torch.Tensor  # [rows] int64: block * block_tokens + offset of each new token
    decode_rows: int
    decode_blocks: torch.Tensor  # [decode_rows, blocks] int64, padded with block 0
    decode_contexts: torch.Tensor  # [decode_rows] int64
    decode_mask: torch.Tensor | None  # [decode_rows, 1, 1, blocks * block_tokens] bool; None where
    # it is to be made of contexts and window
    long: tuple[LongChunk, ...]
    longest: int
    """Context of the longest sequence."""
    window: int | None = None
    """Keys that a query sees, its own the last of them; None for all: `decode_mask` then hides none
    that `decode_contexts` counts."""

    def within(self, window: int) -> AttentionPlan:
        """The plan of a layer whose queries see `window` keys, their own the last of them."""
        if self.longest <= window:
            return self
        seen = replace(self, long=tuple(chunk.within(window) for chunk in self.long), window=window)
        if self.decode_mask is None:
            return seen
        return replace(seen, decode_mask=seen.mask(self.decode_mask.shape[-1]))

    def mask(self, places: int) -> torch.Tensor:
        """Which of so many places of its blocks each decode row sees."""
        place = torch.arange(places, device=self.decode_contexts.device)
        contexts = self.decode_contexts[:, None]
        seen = place[None, :] < contexts
        if self.window is not None:
            seen = seen & (place[None, :] >= contexts - self.window)
        return seen[:, None, None, :]

    @classmethod
    def build(
        cls,
        chunks: Sequence[Chunk],
        *,
        block_tokens: int,
        device: torch.device,
        by_row: int = 1,
    ) -> AttentionPlan:
        """`chunks` in row order: single tokens and those of up to `by_row` tokens of context first.

        Attention that runs longer chunks row by row counts contexts, and is given no mask. Raises
        ValueError when they do not come first.
        """
        first = [chunk for chunk in chunks if chunk.runs_by_row(by_row)]
        if any(chunk.runs_by_row(by_row) for chunk in chunks[len(first) :]):
            raise ValueError("chunks that run row by row must come first")
        decode = [row for chunk in first for row in chunk.rows()]
        slots = [
            chunk.block_table[position // block_tokens] * block_tokens + position % block_tokens
            for chunk in chunks
            for position in range(chunk.start, chunk.context)
        ]
        width = max((-(-chunk.context // block_tokens) for chunk in decode), default=0)
        table = torch.tensor(
            [
                [*(used := chunk.block_table[: -(-chunk.context // block_tokens)])]
                + [0] * (width - len(used))
                for chunk in decode
            ],
            dtype=torch.int64,
        ).view(len(decode), width)
        contexts = torch.tensor([chunk.context for chunk in decode], dtype=torch.int64)
        mask = None
        if by_row == 1:
            visible = torch.arange(width * block_tokens)[None, :] < contexts[:, None]
            mask = visible[:, None, None, :].to(device)
        long: list[LongChunk] = []
        row = len(decode)
        for chunk in chunks[len(first) :]:
            blocks = torch.tensor(chunk.block_table[: -(-chunk.context // block_tokens)])
            seen = None
            if chunk.start:
                positions = torch.arange(chunk.start, chunk.context)
                seen = (torch.arange(chunk.context)[None, :] <= positions[:, None]).to(device)
            long.append(LongChunk(row, chunk.length, chunk.context, blocks.to(device), seen))
            row += chunk.length
        return cls(
            torch.tensor(slots, dtype=torch.int64, device=device),
            len(decode),
            table.to(device),
            contexts.to(device),
            mask,
            tuple(long),
            max((chunk.context for chunk in chunks), default=0),
        )

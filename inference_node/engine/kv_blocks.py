"""Who holds which block of the KV cache. Block 0 is never handed out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockAllocator:
    """Fixed blocks of `block_tokens` tokens."""

    def __init__(self, blocks: int, *, block_tokens: int) -> None:
        self.total = blocks
        self.block_tokens = block_tokens
        self._free = list(range(blocks, 0, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def can_allocate(self, count: int) -> bool:
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Call only after `can_allocate`."""
        assert self.can_allocate(count)
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: Iterable[int]) -> None:
        self._free.extend(blocks)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Every block is free or in exactly one of the `held` tables."""
        everything = sorted([*self._free, *(block for table in held for block in table)])
        assert everything == list(range(1, self.total + 1)), "KV blocks do not add up"

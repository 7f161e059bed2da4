"""Who holds which block of the KV cache. Block 0 is never handed out.

A block is blank, held by one or more requests, or kept: held by nobody, but its content has a name
and the next request with that name takes it as it is. Kept blocks are room too: the one that has
been left alone longest is made blank when no other is left. Only full blocks have names, so a block
that several requests hold is never written again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence


class BlockAllocator:
    """Fixed blocks of `block_tokens` tokens."""

    def __init__(self, blocks: int, *, block_tokens: int) -> None:
        self.total = blocks
        self.block_tokens = block_tokens
        self._blank = list(range(blocks, 0, -1))
        self._holders = [0] * (blocks + 1)
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Least recently held first."""
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        return len(self._blank) + len(self._kept)

    @property
    def kept(self) -> int:
        """Of those that are free: blocks whose content has a name."""
        return len(self._kept)

    def needed(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def can_allocate(self, count: int) -> bool:
        return count <= self.free

    def allocate(self, count: int) -> list[int]:
        """Blocks whose content means nothing. Call only after `can_allocate`."""
        assert self.can_allocate(count)
        return [self._take_one() for _ in range(count)]

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks that hold the first of `names`, up to the first that none does."""
        found: list[int] = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def kept_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are room until somebody holds them."""
        return sum(block in self._kept for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """One more request holds these blocks, which `find` gave."""
        for block in blocks:
            assert block in self._names
            self._holders[block] += 1
            self._kept.pop(block, None)

    def name(self, block: int, name: bytes) -> None:
        """A held block is full and holds `name`; the first block of a name is the one found."""
        assert self._holders[block]
        if name not in self._named:
            assert block not in self._names
            self._named[name] = block
            self._names[block] = name

    def forget(self, blocks: Iterable[int]) -> None:
        """Nobody else is to take these blocks; who holds them keeps them."""
        for block in blocks:
            name = self._names.pop(block, None)
            if name is not None:
                del self._named[name]
                if block in self._kept:
                    del self._kept[block]
                    self._blank.append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """A request lets go of its blocks; of those kept, the end of a prefix goes first."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, "KV blocks do not add up: given back twice"
            self._holders[block] -= 1
            if not self._holders[block]:
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._blank.append(block)

    def would_free(self, blocks: Iterable[int], *, wanted: Collection[int] = ()) -> int:
        """How much room there would be if one holder let go; what is `wanted` is none."""
        return sum(self._holders[block] == 1 and block not in wanted for block in blocks)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Every block is blank, kept, or in as many of the `held` tables as it has holders."""
        holders = [0] * (self.total + 1)
        for table in held:
            assert len(set(table)) == len(table), "KV blocks do not add up: twice in one table"
            for block in table:
                holders[block] += 1
        assert holders == self._holders, "KV blocks do not add up: holders"
        in_use = [block for block, count in enumerate(holders) if count]
        everything = sorted([*self._blank, *self._kept, *in_use])
        assert everything == list(range(1, self.total + 1)), "KV blocks do not add up"
        assert {name: block for block, name in self._names.items()} == self._named
        assert self._kept.keys() <= self._names.keys(), "a kept block holds something"
        assert not self._names.keys() & set(self._blank), "a blank block holds nothing"

    def _take_one(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._named[self._names.pop(block)]
        self._holders[block] = 1
        return block

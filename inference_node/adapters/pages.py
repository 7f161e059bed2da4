"""Page numbers of the adapter pool, handed out and taken back."""

from __future__ import annotations

from collections.abc import Sequence


def pages_for(
    budget: int, page_bytes: Sequence[int], shares: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Pages of every group that `budget` bytes hold, at least one of each.

    Their numbers are to each other as `shares`, equal where None; `page_bytes[g]` is one page's
    size in group g.
    """
    shares = [1.0] * len(page_bytes) if shares is None else shares
    cost = sum(share * size for share, size in zip(shares, page_bytes, strict=True))
    return tuple(max(1, int(budget * share / cost)) for share in shares)


class PageAllocator:
    """Page numbers of every group. Page 0 of each group is all zeros and never handed out."""

    def __init__(self, pages: Sequence[int]) -> None:
        """`pages[g]` pages may be handed out in group g: numbers 1 to pages[g]."""
        self.total = tuple(pages)
        self._free = [list(range(count, 0, -1)) for count in pages]

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self._free)

    def can_allocate(self, wanted: Sequence[int]) -> bool:
        return all(want <= have for want, have in zip(wanted, self.free, strict=True))

    def allocate(self, wanted: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """All of them at once. Call only after `can_allocate`."""
        assert self.can_allocate(wanted)
        return tuple(
            tuple(group.pop() for _ in range(want))
            for group, want in zip(self._free, wanted, strict=True)
        )

    def release(self, pages: Sequence[Sequence[int]]) -> None:
        for group, returned in zip(self._free, pages, strict=True):
            group.extend(reversed(returned))

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """`held[g]` are the pages in use in group g: with the free ones, each exactly once."""
        for group, (free, used) in enumerate(zip(self._free, held, strict=True)):
            everything = sorted([*free, *used])
            assert everything == list(range(1, self.total[group] + 1)), f"group {group} pages"

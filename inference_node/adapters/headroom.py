"""How many pages a version must find, with the headroom that newcomers leave. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence


class Headroom:
    """Room in every group for the next version of a served name, as large as the largest known."""

    def __init__(self, total: Sequence[int], kept: Sequence[int] | None) -> None:
        """`kept` pages of each group, or None: as many as the largest version so far takes."""
        self._total = tuple(total)
        self._kept = kept
        self._largest = (0,) * len(self._total)

    @property
    def pages(self) -> tuple[int, ...]:
        return self._largest if self._kept is None else tuple(self._kept)

    def expect(self, wanted: Sequence[int]) -> None:
        """A version of so many pages is here, or about to be."""
        self._largest = tuple(map(max, self._largest, wanted))

    def asked(self, wanted: Sequence[int], *, fixed: Sequence[int]) -> tuple[int, ...]:
        """What must be free for a newcomer; never more than could be beside `fixed` pages."""
        return tuple(
            max(want, min(want + keep, total - used))
            for want, keep, total, used in zip(wanted, self.pages, self._total, fixed, strict=True)
        )

    def fits_beside(self, fixed: Sequence[int]) -> bool:
        """Whether the largest version and the headroom would still find room."""
        return all(
            used + large + keep <= total
            for used, large, keep, total in zip(
                fixed, self._largest, self.pages, self._total, strict=True
            )
        )

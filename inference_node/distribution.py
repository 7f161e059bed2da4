"""How a measured value is spread: counts between fixed bounds. Pure Python."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a Histogram had counted at one moment."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """Values up to each bound and above the one before; the last are above them all."""
    total: float
    """The values added up."""

    @property
    def number(self) -> int:
        return sum(self.counts)


class Histogram:
    """For one thread; a value that equals a bound counts as under it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` rise."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)

"""Who asks for what and when: Poisson arrivals over adapters whose popularity is Zipf's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
Names = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Popularity:
    """The share of requests of each adapter; number 0 is asked for most."""

    shares: NDArray[np.float64]

    @classmethod
    def zipf(cls, adapters: int, exponent: float) -> Popularity:
        weights = np.arange(1, adapters + 1, dtype=np.float64) ** -exponent
        return cls(weights / weights.sum())

    def draw(self, count: int, random: np.random.Generator) -> Names:
        ends = np.cumsum(self.shares)
        drawn = np.searchsorted(ends, random.random(count) * ends[-1], side="right")
        names: Names = np.minimum(drawn, len(ends) - 1).astype(np.int64)
        return names


def poisson(rate: float, until: float, random: np.random.Generator) -> Times:
    """Moments at `rate` a second, up to `until`."""
    if rate <= 0:
        return np.empty(0)
    count = random.poisson(rate * until)
    return np.sort(random.random(count) * until)

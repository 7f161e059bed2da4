"""What happened in the counted part of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.fleet_sim.tiers import Place

if TYPE_CHECKING:
    from benchmarks.fleet_sim.node import Asked


@dataclass(slots=True)
class Tally:
    """Requests that arrived before the counting began are not in it."""

    sent: list[int]
    """To each node."""
    places: dict[Place, int] = field(default_factory=lambda: dict.fromkeys(Place, 0))
    arrived: int = 0
    refused: int = 0
    joined_loads: int = 0
    """Found their adapter on its way."""
    at_home: int = 0
    """Sent to the owner of their adapter on the ring."""
    answers: int = 0
    resolved_cold: int = 0
    resolved_known: int = 0
    published: int = 0
    swap_s: list[float] = field(default_factory=list)
    """From a publish to each node that serves the adapter."""
    stale_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def found(self, asked: Asked, place: Place) -> None:
        if asked.counted:
            self.places[place] += 1

    def joined(self, asked: Asked) -> None:
        if asked.counted:
            self.joined_loads += 1

    def resolved(self, asked: Asked, *, cold: bool) -> None:
        if asked.counted:
            self.resolved_cold += cold
            self.resolved_known += not cold

    def stale(self, asked: Asked, seconds: float) -> None:
        """It is answered by a version that was replaced so long ago."""
        if asked.counted:
            self.stale_s.append(seconds)

    def started(self, asked: Asked, now: float) -> None:
        if asked.counted:
            self.waits_s.append(now - asked.arrived)

    def answered(self, asked: Asked, now: float) -> None:
        if asked.counted:
            self.answers += 1
            self.latencies_s.append(now - asked.arrived)


def percentiles(seconds: Sequence[float], *cuts: float) -> dict[str, Any]:
    """In milliseconds, by `p50` and so on; None of nothing."""
    if not seconds:
        return {f"p{cut:g}_ms": None for cut in cuts}
    found = np.percentile(np.asarray(seconds), cuts)
    return {
        f"p{cut:g}_ms": round(1000 * float(value), 2)
        for cut, value in zip(cuts, found, strict=True)
    }

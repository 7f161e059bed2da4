"""Which of many have series of their own: those that are used most. Pure Python.

Names come and go, and each is a dozen series: a node with thousands of adapters must not have
thousands of dozens. Who comes first gets a place while there is one. Then a newcomer takes the
place of the least used once it is used twice as much over the last two periods, so that places do
not change hands by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

CANDIDATES = 4
"""Times as many as there are places are watched for more use."""


class Shortlist(Generic[K]):
    """For one thread, or under its owner's lock."""

    def __init__(
        self,
        places: int,
        *,
        clock: Callable[[], float],
        on_dropped: Callable[[K], None],
        period: float = 300.0,
    ) -> None:
        """`on_dropped` is told who lost its place; every `period` seconds places are given anew."""
        self._places = places
        self._clock = clock
        self._on_dropped = on_dropped
        self._period = period
        self._turned_at = clock()
        self._listed: set[K] = set()
        self._now: Counter[K] = Counter()
        self._before: Counter[K] = Counter()

    def __contains__(self, key: K) -> bool:
        return key in self._listed

    def use(self, key: K) -> bool:
        """Count one use; whether it has a place."""
        if self._clock() - self._turned_at >= self._period:
            self._turn()
        if key not in self._listed and len(self._listed) < self._places:
            self._listed.add(key)
        if key in self._now or len(self._now) < CANDIDATES * max(1, self._places):
            self._now[key] += 1
        elif key in self._listed:
            self._now[key] = 1
        return key in self._listed

    def check_integrity(self) -> None:
        """Raises AssertionError when more is remembered than there should be."""
        assert len(self._listed) <= self._places
        most = (CANDIDATES + 1) * max(1, self._places)
        assert len(self._now) <= most
        assert len(self._before) <= most

    def _turn(self) -> None:
        """Give the places of the least used to those that are used twice as much."""
        use = self._now + self._before
        rivals = [key for key, _ in use.most_common() if key not in self._listed]
        least = sorted(self._listed, key=lambda key: use[key])
        for rival, key in zip(rivals, least, strict=False):
            if use[rival] <= 2 * use[key]:
                break
            self._listed.remove(key)
            self._listed.add(rival)
            self._on_dropped(key)
        self._before, self._now = self._now, Counter()
        self._turned_at = self._clock()

"""How long to leave alone what has failed, and what was not there. Pure Python."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Delays:
    """`first` seconds after one failure, twice as long after each further one, up to `longest`."""

    first: float
    longest: float

    def after(self, failures: int, *, jitter: float = 0.5) -> float:
        """`jitter`, from 0 to 1, spreads a delay from 3/4 to 5/4 of it, within the bounds."""
        plain = min(self.longest, self.first * 2.0 ** min(failures - 1, 32))
        return min(self.longest, max(self.first, plain * (0.75 + 0.5 * jitter)))


@dataclass(slots=True)
class _Setback:
    failures: int
    until: float
    error: Exception


class Backoff(Generic[K]):
    """Failures in a row of each key, the last error, and when to try again."""

    def __init__(
        self, delays: Delays, *, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        """`random` gives numbers from 0 to 1."""
        self._delays = delays
        self._clock = clock
        self._random = random
        self._failed: OrderedDict[K, _Setback] = OrderedDict()

    def failed(self, key: K, error: Exception) -> float:
        """One more failure; when to try again, on the clock."""
        before = self._failed.pop(key, None)
        failures = 1 if before is None else before.failures + 1
        until = self._clock() + self._delays.after(failures, jitter=self._random())
        self._failed[key] = _Setback(failures, until, error)
        while len(self._failed) > REMEMBERED:
            self._failed.popitem(last=False)
        return until

    def succeeded(self, key: K) -> None:
        self._failed.pop(key, None)

    def failures(self, key: K) -> int:
        setback = self._failed.get(key)
        return 0 if setback is None else setback.failures

    def until(self, key: K) -> float:
        """When it may be tried again; not after now if it may be now."""
        setback = self._failed.get(key)
        return 0.0 if setback is None else setback.until

    def error(self, key: K) -> Exception | None:
        """What it failed with last, while it is to be left alone."""
        setback = self._failed.get(key)
        return setback.error if setback is not None and setback.until > self._clock() else None

"""What publishers and nodes may ask of Redis, none of it needed for safety.

A lock keeps publishers from wasting work and a hint makes nodes look sooner. Both may be absent,
late or wrong: the log slot alone decides a commit, and only the store says what is current.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Hint:
    """A reason to look at one adapter's log; never a fact."""

    tenant: str
    adapter: str
    gen: int
    ahead: bool = False
    """Whether the listener is asked to fetch what may be served next, though it serves none."""


class Lease(Protocol):
    """The right to publish one adapter, while it lasts."""

    @property
    def fence(self) -> int:
        """Rises with every grant for this adapter; goes into the record."""
        ...

    def ensure_held(self) -> None:
        """Return while the lease is certainly ours; raises LockLost. Call before every write."""
        ...

    def release(self) -> None:
        """Give it back if it is still ours. Idempotent; never raises."""
        ...


class PublishLock(Protocol):
    """Mutual exclusion between publishers of one adapter, for thrift alone."""

    @property
    def reason(self) -> str:
        """Why the last `acquire` gave None, in words for a warning; empty after a grant."""
        ...

    def acquire(self, tenant: str, adapter: str, *, floor: int) -> Lease | None:
        """A lease whose fence is above `floor` (the fence of the current record).

        None means: go on without a lock, with fence `floor + 1`, and warn once with `reason`.
        Redis does not answer, or another holder kept the lock for the whole bounded wait.
        """
        ...


class Announcer(Protocol):
    """Tells nodes that a log has grown."""

    def announce(self, tenant: str, adapter: str, gen: int) -> None:
        """Best effort; never raises."""
        ...


@dataclass(frozen=True, slots=True)
class NoLock:
    """Publishing without Redis: every publish goes on without a lease."""

    reason: str = "no Redis is configured"

    def acquire(self, tenant: str, adapter: str, *, floor: int) -> Lease | None:
        return None


@dataclass(frozen=True, slots=True)
class NoAnnouncer:
    """Publishing without Redis: nodes find the new record when they poll."""

    def announce(self, tenant: str, adapter: str, gen: int) -> None:
        return

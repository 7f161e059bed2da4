"""The lease during one publish: which fence goes into the record, and when to stop.

A publisher that lost its lock stops, because another may have worked meanwhile. A publisher whose
Redis is gone goes on: it keeps the fence it was given, and the log slot decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from adapter_store.coordination import Lease, PublishLock
from adapter_store.errors import LockLost


class Fencing:
    """Safe for several threads; every write of a publish asks `ensure` first."""

    def __init__(
        self, lock: PublishLock, tenant: str, adapter: str, *, warn: Callable[[str], None]
    ) -> None:
        self._lock = lock
        self._tenant = tenant
        self._adapter = adapter
        self._warn = warn
        self._mutex = threading.Lock()
        self._lease: Lease | None = None
        self._granted = 0

    def take(self, floor: int) -> None:
        """Ask for the lock, waiting a bounded time; without it, warn and go on."""
        self._lease = self._lock.acquire(self._tenant, self._adapter, floor=floor)
        if self._lease is None:
            self._warn(f"publishing without the lock: {self._lock.reason}")
        else:
            self._granted = self._lease.fence

    def raise_above(self, floor: int) -> None:
        """Trade a lease whose fence a publisher without the lock has overtaken."""
        if self._lease is not None and self._lease.fence <= floor:
            self._lease.release()
            self.take(floor)

    def fence_over(self, floor: int) -> int:
        """The fence of a record on top of one with fence `floor`."""
        return max(self._granted, floor) if self._granted else floor + 1

    def ensure(self) -> None:
        """Return when writing may go on. Raises LockLost when the lease is lost for real."""
        with self._mutex:
            if self._lease is None:
                return
            try:
                self._lease.ensure_held()
            except LockLost as error:
                self._lease.release()
                self._lease = None
                # Only a Redis that answers can tell that the lease is lost and not out of reach.
                again = self._lock.acquire(self._tenant, self._adapter, floor=self._granted)
                if again is not None:
                    again.release()
                    raise
                self._warn(f"{error}; going on without it: {self._lock.reason}")

    def release(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None

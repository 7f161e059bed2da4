"""What tenants may take of the node, and what they have taken. Pure Python.

Quotas are TOML, read again when the file changes; what is not named is not limited, and what a
tenant's table leaves out is taken from the default's:

    [default]
    requests_per_second = 20
    tokens_per_second = 10_000      # of prompts and answers
    concurrent = 32
    cold_loads_per_minute = 30      # versions that are on this node neither on device nor host;
                                    # once spent, names that were never here are refused unseen
    fetch_bytes_per_second = 20_000_000
    resident_pages = 64             # of the adapter pool, all module groups together
    max_priority = 0                # requests that ask for a higher one are refused
    burst_seconds = 10              # unused for so long, so much may be taken at once

    [tenant.acme]
    tokens_per_second = 100_000
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from inference_node.errors import QuotaExceeded

IDLE_TENANTS = 1024
"""So many tenants are remembered before those that owe nothing are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Of one tenant."""

    requests_per_second: float = math.inf
    tokens_per_second: float = math.inf
    concurrent: float = math.inf
    cold_loads_per_minute: float = math.inf
    fetch_bytes_per_second: float = math.inf
    resident_pages: float = math.inf
    max_priority: float = math.inf
    burst_seconds: float = 10.0


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class QuotaTable:
    """Of all tenants."""

    default: Quota = UNLIMITED
    tenants: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, tenant: str) -> Quota:
        return self.tenants.get(tenant, self.default)


@dataclass(frozen=True, slots=True, eq=False)
class Rate:
    """A quota of so many in `seconds`, by the name of its field; equal to itself alone."""

    name: str
    seconds: float = 1.0

    def limit(self, quota: Quota) -> float:
        value: float = getattr(quota, self.name)
        return value

    def per_second(self, quota: Quota) -> float:
        return self.limit(quota) / self.seconds

    def capacity(self, quota: Quota) -> float:
        """What may be taken at once; a single one always may."""
        burst = quota.burst_seconds if self.seconds == 1.0 else self.seconds
        return max(1.0, self.per_second(quota) * burst)


REQUESTS, TOKENS = Rate("requests_per_second"), Rate("tokens_per_second")
COLD_LOADS = Rate("cold_loads_per_minute", 60.0)
FETCHED_BYTES = Rate("fetch_bytes_per_second")


@dataclass(slots=True)
class Bucket:
    """Fills by `rate` a second up to `capacity`. Who asks for more than that waits for it to be
    full, and leaves it in debt. Times are seconds of one monotonic clock."""

    level: float
    at: float

    def wait(self, amount: float, *, rate: float, capacity: float, now: float) -> float:
        """Seconds until `amount` can be taken; 0 when it can be taken now."""
        self._fill(rate=rate, capacity=capacity, now=now)
        missing = min(amount, capacity) - self.level
        return 0.0 if missing <= 0 else missing / rate

    def take(self, amount: float) -> None:
        self.level -= amount

    def _fill(self, *, rate: float, capacity: float, now: float) -> None:
        self.level = min(capacity, self.level + (now - self.at) * rate)
        self.at = now


class Ledger:
    """What each tenant has taken of some rates, remembered while it owes anything.

    One thread uses it.
    """

    def __init__(
        self,
        table: Callable[[], QuotaTable],
        rates: tuple[Rate, ...],
        *,
        clock: Callable[[], float],
    ) -> None:
        """`table` is asked every time."""
        self._table = table
        self._rates = rates
        self._clock = clock
        self._buckets: dict[str, dict[Rate, Bucket]] = {}

    def refusal(self, tenant: str, amounts: Mapping[Rate, float]) -> QuotaExceeded | None:
        """Why the tenant cannot take so much now, and when to come back; None when it can."""
        quota, now = self._table().of(tenant), self._clock()
        for rate, amount in amounts.items():
            bucket = self._bucket(tenant, rate, quota, now)
            if bucket is None:
                continue
            per_second, capacity = rate.per_second(quota), rate.capacity(quota)
            wait = bucket.wait(amount, rate=per_second, capacity=capacity, now=now)
            if wait > 0:
                return exceeded(rate.name, rate.limit(quota), wait)
        return None

    def take(self, tenant: str, amounts: Mapping[Rate, float]) -> None:
        """Taken, allowed or not; what is negative is given back."""
        quota, now = self._table().of(tenant), self._clock()
        for rate, amount in amounts.items():
            bucket = self._bucket(tenant, rate, quota, now)
            if bucket is not None:
                bucket.take(amount)

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._buckets)

    def _bucket(self, tenant: str, rate: Rate, quota: Quota, now: float) -> Bucket | None:
        if rate.limit(quota) == math.inf:
            return None
        buckets = self._buckets.get(tenant)
        if buckets is None:
            if len(self._buckets) >= IDLE_TENANTS:
                self._forget(now)
            buckets = self._buckets[tenant] = {}
        if rate not in buckets:
            buckets[rate] = Bucket(rate.capacity(quota), now)
        return buckets[rate]

    def _forget(self, now: float) -> None:
        table = self._table()
        self._buckets = {
            tenant: buckets
            for tenant, buckets in self._buckets.items()
            if not _owes_nothing(buckets, table.of(tenant), now)
        }


def exceeded(name: str, limit: float, wait: float | None) -> QuotaExceeded:
    """`wait` is when to come back, in seconds; None when that helps nothing."""
    hint = "ask the operator for a higher quota"
    return QuotaExceeded(
        f"the tenant is over its {name}, {limit:g}",
        hint=hint if wait is None else f"come back later, or {hint}",
        retry_after=wait,
        details={"quota": name, "limit": f"{limit:g}"},
    )


def _owes_nothing(buckets: Mapping[Rate, Bucket], quota: Quota, now: float) -> bool:
    return all(
        bucket.level + (now - bucket.at) * rate.per_second(quota) >= rate.capacity(quota)
        for rate, bucket in buckets.items()
        if rate.limit(quota) < math.inf
    )

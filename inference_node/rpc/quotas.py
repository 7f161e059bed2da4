"""What one tenant may take of the node: calls and tokens by the second, calls at once.

Quotas are TOML, read again when the file changes; what is not named is not limited, and what a
tenant's table leaves out is taken from the default's:

    [default]
    requests_per_second = 20
    tokens_per_second = 10_000      # of prompts and answers
    concurrent = 32
    burst_seconds = 10              # unused for so long, so much may be taken at once

    [tenant.acme]
    tokens_per_second = 100_000
"""

from __future__ import annotations

import contextlib
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference_node.errors import BadConfiguration, QuotaExceeded
from inference_node.rpc.reloaded import read_file

REQUESTS, TOKENS, CONCURRENT = "requests_per_second", "tokens_per_second", "concurrent"
BURST = "burst_seconds"
BUSY_RETRY_SECONDS = 1.0
"""When a place may be free again, nobody can say."""
IDLE_TENANTS = 1024
"""So many tenants are remembered before those that owe nothing are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Of one tenant."""

    requests_per_second: float = math.inf
    tokens_per_second: float = math.inf
    concurrent: float = math.inf
    burst_seconds: float = 10.0


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class QuotaTable:
    """Of all tenants."""

    default: Quota = UNLIMITED
    tenants: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, tenant: str) -> Quota:
        return self.tenants.get(tenant, self.default)


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


@dataclass(slots=True)
class _Tenant:
    requests: Bucket
    tokens: Bucket
    running: int = 0

    def owes_nothing(self, quota: Quota, now: float) -> bool:
        full = (
            bucket.level + (now - bucket.at) * rate >= _capacity(rate, quota)
            for bucket, rate in (
                (self.requests, quota.requests_per_second),
                (self.tokens, quota.tokens_per_second),
            )
            if rate < math.inf
        )
        return not self.running and all(full)


@dataclass(slots=True)
class Stay:
    """One call; `used` is what it has really taken, in tokens."""

    used: int = 0


class Quotas:
    """Who has taken what. One thread uses it."""

    def __init__(self, table: Callable[[], QuotaTable], *, clock: Callable[[], float]) -> None:
        """`table` is asked at every call."""
        self._table = table
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}

    @contextlib.contextmanager
    def stay(self, tenant: str, *, tokens: int) -> Iterator[Stay]:
        """A call that may take up to `tokens`; what it has not used is given back at the end.

        Raises QuotaExceeded, with when to come back.
        """
        quota = self._table().of(tenant)
        if quota == UNLIMITED:
            yield Stay()
            return
        now = self._clock()
        state = self._state(tenant, quota, now)
        self._check(state, quota, tokens, now)
        state.requests.take(1)
        state.tokens.take(tokens)
        state.running += 1
        stay = Stay()
        try:
            yield stay
        finally:
            state.running -= 1
            state.tokens.take(min(stay.used, tokens) - tokens)

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._tenants)

    def _state(self, tenant: str, quota: Quota, now: float) -> _Tenant:
        state = self._tenants.get(tenant)
        if state is None:
            if len(self._tenants) >= IDLE_TENANTS:
                self._forget(now)
            requests, tokens = (
                Bucket(_capacity(rate, quota), now)
                for rate in (quota.requests_per_second, quota.tokens_per_second)
            )
            state = self._tenants[tenant] = _Tenant(requests, tokens)
        return state

    def _forget(self, now: float) -> None:
        table = self._table()
        for tenant, state in list(self._tenants.items()):
            if state.owes_nothing(table.of(tenant), now):
                del self._tenants[tenant]

    def _check(self, state: _Tenant, quota: Quota, tokens: int, now: float) -> None:
        if state.running >= quota.concurrent:
            _refuse(CONCURRENT, quota.concurrent, BUSY_RETRY_SECONDS)
        for name, bucket, amount in ((REQUESTS, state.requests, 1), (TOKENS, state.tokens, tokens)):
            rate: float = getattr(quota, name)
            if rate == math.inf:
                continue
            wait = bucket.wait(amount, rate=rate, capacity=_capacity(rate, quota), now=now)
            if wait > 0:
                _refuse(name, rate, wait)


def read_quotas(path: Path) -> QuotaTable:
    """Raises BadConfiguration naming the table and the field."""
    try:
        value = tomllib.loads(read_file(path, what="quotas file").decode())
    except ValueError as error:
        raise BadConfiguration(f"quotas file {path} is not TOML: {error}") from None
    default, tenants = value.pop("default", {}), value.pop("tenant", {})
    if value:
        raise BadConfiguration(f"quotas file {path}: {sorted(value)[0]!r} is no part of it")
    if not isinstance(tenants, dict):
        raise BadConfiguration(f"quotas file {path}: tenant is no table of tables")
    base = _quota(default, UNLIMITED, f"quotas file {path}: default")
    return QuotaTable(
        base,
        {
            name: _quota(table, base, f"quotas file {path}: tenant {name!r}")
            for name, table in tenants.items()
        },
    )


def _quota(table: object, base: Quota, where: str) -> Quota:
    if not isinstance(table, dict):
        raise BadConfiguration(f"{where} is no table")
    for name, limit in table.items():
        if name not in (REQUESTS, TOKENS, CONCURRENT, BURST):
            raise BadConfiguration(f"{where}: {name} is no quota")
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
            raise BadConfiguration(f"{where}: {name} must be above 0")
    changes: dict[str, Any] = table
    return replace(base, **changes)


def _capacity(rate: float, quota: Quota) -> float:
    """What may be taken at once; a single call always may."""
    return rate if rate == math.inf else max(1.0, rate * quota.burst_seconds)


def _refuse(name: str, limit: float, wait: float) -> None:
    raise QuotaExceeded(
        f"the tenant is over its {name}, {limit:g}",
        hint="come back later, or ask the operator for a higher quota",
        retry_after=wait,
        details={"quota": name, "limit": f"{limit:g}"},
    )

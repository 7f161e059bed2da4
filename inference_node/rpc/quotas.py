"""Calls held to their tenants' quotas, and the file that says these (inference_node/quotas.py)."""

from __future__ import annotations

import contextlib
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from inference_node.errors import BadConfiguration, InvalidRequest
from inference_node.quotas import (
    REQUESTS,
    TOKENS,
    UNLIMITED,
    Ledger,
    Quota,
    QuotaTable,
    exceeded,
)
from inference_node.rpc.reloaded import Reloaded, read_file

CONCURRENT, PRIORITY = "concurrent", "max_priority"
BUSY_RETRY_SECONDS = 1.0
"""When a place may be free again, nobody can say."""
LOOK_EVERY = 0.1
"""Seconds until a changed file is in force, at the most."""


@dataclass(slots=True)
class Stay:
    """One call; `used` is what it has really taken, in tokens."""

    used: int = 0


class Quotas:
    """Who calls, and how much. One thread uses it."""

    def __init__(self, table: Callable[[], QuotaTable], *, clock: Callable[[], float]) -> None:
        """`table` is asked at every call."""
        self._table = table
        self._ledger = Ledger(table, (REQUESTS, TOKENS), clock=clock)
        self._running: Counter[str] = Counter()

    def stay(
        self, tenant: str, *, tokens: int, priority: int = 0
    ) -> contextlib.AbstractContextManager[Stay]:
        """A call that may take up to `tokens`; what it has not used is given back at the end.

        Raises QuotaExceeded with when to come back, and InvalidRequest for too high a priority.
        """
        quota = self._table().of(tenant)
        # Equal ones are told apart by eight fields, and most nodes have but the one.
        if quota is UNLIMITED or quota == UNLIMITED:
            return contextlib.nullcontext(Stay())
        return self._held(tenant, quota, tokens, priority)

    @contextlib.contextmanager
    def _held(self, tenant: str, quota: Quota, tokens: int, priority: int) -> Iterator[Stay]:
        self._check(tenant, quota, tokens, priority)
        self._ledger.take(tenant, {REQUESTS: 1, TOKENS: tokens})
        self._running[tenant] += 1
        stay = Stay()
        try:
            yield stay
        finally:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]
            self._ledger.take(tenant, {TOKENS: min(stay.used, tokens) - tokens})

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._ledger)

    def _check(self, tenant: str, quota: Quota, tokens: int, priority: int) -> None:
        if priority > quota.max_priority:
            raise InvalidRequest(
                "priority",
                f"is above {quota.max_priority:g}, the highest of tenant {tenant!r}",
                hint="ask for less, or ask the operator for a higher max_priority",
            )
        if self._running[tenant] >= quota.concurrent:
            raise exceeded(CONCURRENT, quota.concurrent, BUSY_RETRY_SECONDS)
        refusal = self._ledger.refusal(tenant, {REQUESTS: 1, TOKENS: tokens})
        if refusal is not None:
            raise refusal


def quota_table(path: Path | None) -> Callable[[], QuotaTable]:
    """What the file says now, read again when it changes. Raises BadConfiguration."""
    if path is None:
        return QuotaTable
    reloaded = Reloaded("quotas file", (path,), lambda: read_quotas(path), look_every=LOOK_EVERY)
    return lambda: reloaded.now


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
    known = {field.name for field in fields(Quota)}
    for name, limit in table.items():
        if name not in known:
            raise BadConfiguration(f"{where}: {name} is no quota")
        least = -math.inf if name == PRIORITY else 0
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > least:
            raise BadConfiguration(f"{where}: {name} must be {'a number' if least else 'above 0'}")
    changes: dict[str, Any] = table
    return replace(base, **changes)

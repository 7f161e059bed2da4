"""What tenants may load onto this node. Pure Python; for the engine thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import VersionKey
from inference_node.errors import QuotaExceeded
from inference_node.quotas import COLD_LOADS, FETCHED_BYTES, Ledger, QuotaTable, exceeded

PAGES = "resident_pages"
BUSY_RETRY_SECONDS = 1.0
"""When a tenant's own requests give pages back, nobody can say."""


class Allowance:
    """Fetches by the minute and by the byte, and pages of the pool.

    A version that comes because a newer one was published is counted and never refused: its name
    would fall behind. So a storm of publishes is paid for by the requests that come after it.
    """

    def __init__(
        self,
        table: Callable[[], QuotaTable],
        slots: SlotTable,
        *,
        on_host: Callable[[VersionKey], object | None],
        clock: Callable[[], float],
    ) -> None:
        """`table` is asked every time. What is `on_host` needs no fetch."""
        self._table = table
        self._slots = slots
        self._on_host = on_host
        self._ledger = Ledger(table, (COLD_LOADS, FETCHED_BYTES), clock=clock)

    def refusal(self, key: VersionKey, size: int) -> QuotaExceeded | None:
        """Why a version of `size` bytes is not fetched for its tenant now; None when it may be."""
        return None if self._on_host(key) is not None else self._over(key.tenant, size)

    def spent(self, tenant: str) -> QuotaExceeded | None:
        """Why no version of any size is fetched for the tenant now; None when one may be."""
        return self._over(tenant, 1)

    def begun(self, key: VersionKey, size: int) -> None:
        """A version is brought: fetched, unless it is on the host."""
        if self._on_host(key) is None:
            self._ledger.take(key.tenant, {COLD_LOADS: 1, FETCHED_BYTES: size})

    def too_large(self, tenant: str, pages: Sequence[int]) -> QuotaExceeded | None:
        """Why a tenant can never have a version of so many pages in each group."""
        most = self._most(tenant)
        return exceeded(PAGES, most, None) if sum(pages) > most else None

    def can_have(self, tenant: str, pages: Sequence[int]) -> bool:
        """Whether the tenant may have so many more, its idle versions gone."""
        most = self._most(tenant)
        return most == math.inf or self._slots.can_keep_within(tenant, sum(pages), most)

    def make_room(self, tenant: str, pages: Sequence[int]) -> None:
        """Evict the tenant's idle versions as far as it needs. Call only after `can_have`."""
        self._slots.keep_within(tenant, sum(pages), self._most(tenant))

    def busy(self, tenant: str) -> QuotaExceeded:
        """What to tell who waited for pages that the tenant's own requests hold."""
        return exceeded(PAGES, self._most(tenant), BUSY_RETRY_SECONDS)

    def _over(self, tenant: str, size: int) -> QuotaExceeded | None:
        return self._ledger.refusal(tenant, {COLD_LOADS: 1, FETCHED_BYTES: size})

    def _most(self, tenant: str) -> float:
        return self._table().of(tenant).resident_pages

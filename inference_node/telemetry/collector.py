"""All that is known of a node when somebody scrapes it: looked up then, and kept nowhere.

The engine answers between two steps. One that does not, for a long step or because it is dead, is
not waited for longer than a scrape can: its series are left out, never told from memory, and
`lorapool_engine_up` says which it was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.registry import Collector

from inference_node.errors import NodeError
from inference_node.readings import Decoding, InProgress, KvCache, Loading, Readable, Readings
from inference_node.request import ModelInfo
from inference_node.residency import PoolUse
from inference_node.telemetry import series, vllm
from inference_node.telemetry.book import Book
from inference_node.telemetry.page import Page

ENGINE_SECONDS = 5.0
"""The engine is waited for so long; Prometheus gives a scrape up after 10 s."""
DIGEST_LETTERS = 12


class Observed(Readable, Protocol):
    """The engine, as far as a scrape looks at it."""

    def info(self) -> ModelInfo: ...

    def healthy(self) -> bool: ...


class NodeCollector(Collector):
    """Asked by as many threads as there are scrapes at once."""

    def __init__(
        self,
        engine: Observed,
        book: Book,
        *,
        adapters: int,
        records_refused: Callable[[], int],
        audit_lost: Callable[[], int] | None = None,
        patience: float = ENGINE_SECONDS,
    ) -> None:
        """At most `adapters` versions are told by name; `audit_lost` where there is an audit."""
        self._engine = engine
        self._book = book
        self._adapters = adapters
        self._records_refused = records_refused
        self._audit_lost = audit_lost
        self._patience = patience
        self.draining = False

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry would otherwise collect to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        page = Page()
        info = self._engine.info()
        page.put(
            series.NODE,
            1,
            version("lorapool"),
            info.name,
            info.base_fingerprint[:DIGEST_LETTERS],
            info.device,
            info.kernel,
        )
        page.put(series.ENGINE_UP, self._engine.healthy())
        page.put(series.DRAINING, self.draining)
        page.put(series.RECORDS_REFUSED, self._records_refused())
        if self._audit_lost is not None:
            page.put(series.AUDIT_LOST, self._audit_lost())
        self._book.write(page)
        began = time.monotonic()
        readings = self._read()
        if readings is not None:
            page.put(series.READ_SECONDS, time.monotonic() - began)
            _requests(page, readings.requests)
            _kv(page, readings.kv)
            _decoding(page, readings.decoding)
            _loading(page, readings.loading)
            _pool(page, readings.pool)
            _residency(page, readings)
            page.put(series.STORE_AWAY, readings.store_away)
            if readings.hints_healthy is not None:
                page.put(series.HINTS_HEALTHY, readings.hints_healthy)
            vllm.write(page, readings, info, wall_clock=time.time())
        return page.families()

    def _read(self) -> Readings | None:
        try:
            return self._engine.read(listed=self._adapters).result(self._patience)
        except (NodeError, TimeoutError):
            return None


def _requests(page: Page, now: InProgress) -> None:
    for phase in ("resolving", "loading", "waiting", "running"):
        page.put(series.IN_PROGRESS, getattr(now, phase), phase)
    page.put(series.IN_PROGRESS_LIMIT, now.limit)
    page.put(series.QUEUE_OLDEST, now.oldest_seconds)


def _kv(page: Page, kv: KvCache) -> None:
    page.put(series.KV_BLOCKS, kv.held, "held")
    page.put(series.KV_BLOCKS, kv.kept, "cached")
    page.put(series.KV_BLOCKS, kv.total - kv.held - kv.kept, "free")


def _decoding(page: Page, done: Decoding) -> None:
    page.spread(series.QUEUE, done.queue)
    page.spread(series.ADAPTER_WAIT, done.adapter_wait)
    page.spread(series.FIRST_TOKEN, done.first_token)
    page.spread(series.GAP, done.gaps_quiet, "quiet")
    page.spread(series.GAP, done.gaps_loading, "loading")
    page.spread(series.STEP, done.steps)
    page.put(series.STALL, done.stalled)
    page.put(series.PROMPT_TOKENS, done.prompt_tokens)
    page.put(series.CACHED_TOKENS, done.cached_tokens)
    page.put(series.GENERATED_TOKENS, done.generated_tokens)
    page.put(series.PREEMPTIONS, done.preemptions)


def _loading(page: Page, done: Loading) -> None:
    page.put(series.LOADING, done.in_work)
    for outcome, number in done.lookups.items():
        page.put(series.LOOKUPS, number, outcome)
    for source in ("store", "host"):
        page.put(series.LOADS, done.loads.get(source, 0), source)
    for reason, number in done.refused.items():
        page.put(series.REFUSALS, number, reason)
    page.put(series.FETCHED, done.fetched_bytes)
    for stage in ("resolve", "fetch", "verify", "stage", "promote"):
        page.spread(series.LOAD_STAGE, getattr(done, stage), stage)
    page.spread(series.LOAD, done.whole)
    page.put(series.SWAPS, done.swaps)
    page.put(series.MADE_WAY, done.made_way)
    page.put(series.WITHDRAWALS, done.withdrawals)
    for tier, number in done.evicted.items():
        page.put(series.EVICTIONS, number, tier.value)


def _pool(page: Page, pool: PoolUse) -> None:
    for group in pool.groups:
        for state in ("free", "idle", "held", "pinned", "condemned"):
            page.put(series.PAGES, getattr(group, state), group.name, state)
        page.put(series.PAGE_BYTES, group.page_bytes, group.name)
        page.put(series.HEADROOM, group.headroom, group.name)
    page.put(series.LEASES, pool.leases)
    page.put(series.WAITING_VERSIONS, pool.swaps_waiting, "swap")
    page.put(series.WAITING_VERSIONS, pool.waiting - pool.swaps_waiting, "newcomer")
    page.put(series.HOST_BYTES, pool.host_bytes)
    page.put(series.HOST_LIMIT, pool.host_budget)
    page.put(series.STALENESS, pool.stale_seconds)


def _residency(page: Page, readings: Readings) -> None:
    left = Counter[str]()
    for (tier, state), number in readings.versions.items():
        page.put(series.VERSIONS, number, tier.value, state.value)
        left[tier.value] += number
    shown: Counter[tuple[str, ...]] = Counter()
    for one in readings.listed:
        served = one.served
        named = (served.tenant, served.adapter, served.version, str(served.generation))
        shown[(*named, served.digest[:DIGEST_LETTERS], one.tier.value)] += 1
        left[one.tier.value] -= 1
        for name in one.names:
            page.put(series.GENERATION, name.generation, name.tenant, name.adapter)
    for labels, number in shown.items():
        page.put(series.VERSION_LOADED, number, *labels)
    for tier_name, number in left.items():
        page.put(series.VERSION_LOADED, number, *(series.OTHER,) * 5, tier_name)

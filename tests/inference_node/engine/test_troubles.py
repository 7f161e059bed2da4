"""Each trouble that a node can meet ends as it should: on real threads, over a store that fails."""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapter_store.cache import ContentCache
from adapter_store.coordination import Hint
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.reader import Reader
from inference_node.adapters import absent as absent_module
from inference_node.adapters.absent import AbsentNames
from inference_node.adapters.backoff import Delays
from inference_node.adapters.reports import Target
from inference_node.config import EngineConfig
from inference_node.engine.arrivals import Arrivals
from inference_node.engine.claims import Claim
from inference_node.errors import (
    AdapterCorrupt,
    AdapterNotFound,
    Cancelled,
    DeadlineExpired,
    PoolFull,
    StoreDown,
)
from tests.adapter_store.waiting import wait_until
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.troubled_store import TroubledStore, publish, served_gen
from tests.inference_node.harness import PATIENCE, Node, start_node


@pytest.fixture
def store() -> TroubledStore:
    return TroubledStore()


def hundred_for_one(node: Node, store: TroubledStore, folder: Path) -> int:
    """A hundred requests for one cold adapter; how often its bytes were read at most."""
    publish(node, folder, "a", 1)
    store.gate.clear()
    store.blobs.clear()
    store.logs = 0
    waiting = [node.ask("a", tokens=1) for _ in range(100)]
    hasty = node.ask("a", tokens=1, deadline_in=0.05)
    assert isinstance(hasty.error, DeadlineExpired), "each waits with its own deadline"
    store.gate.set()
    assert len({answer.tokens[0] for answer in waiting}) == 1
    node.settle()
    return max(store.blobs.values())


def test_a_hundred_requests_for_one_cold_adapter_fetch_it_once(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    assert hundred_for_one(start_tiny(store), store, tmp_path) == 1


def test_control_without_single_flight_it_is_fetched_again_and_again(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Arrivals.claim

    def each_for_itself(self: Arrivals, one: Claim, target: Target) -> None:
        claim(self, one, target)
        self._loader._workers.submit(self._loader._prepare, target)

    monkeypatch.setattr(Arrivals, "claim", each_for_itself)
    assert hundred_for_one(start_tiny(store), store, tmp_path) > 1


def flood(node: Node, store: TroubledStore) -> int:
    """Ask for what does not exist, one after the other; requests that it cost the store."""
    store.logs = 0
    for _ in range(60):
        assert isinstance(node.ask("nobody", tokens=1).error, AdapterNotFound)
    return store.logs


def test_a_flood_of_requests_for_an_unknown_adapter_hardly_reaches_the_store(
    start_tiny: StartTiny, store: TroubledStore
) -> None:
    assert flood(start_tiny(store), store) <= 4


def test_control_a_node_that_remembers_nothing_asks_for_each(
    start_tiny: StartTiny, store: TroubledStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AbsentNames, "recalls", lambda self, ref, least: False)
    assert flood(start_tiny(store), store) >= 60


class QueuedHints:
    """A hint stream that a test writes to."""

    def __init__(self) -> None:
        self.healthy = True
        self.gaps = 0
        self.queue: queue.SimpleQueue[Hint] = queue.SimpleQueue()

    def poll(self, timeout_s: float, /) -> Sequence[Hint]:
        try:
            return [self.queue.get(timeout=min(timeout_s, 0.05))]
        except queue.Empty:
            return ()


def test_a_hint_makes_a_name_visible_that_was_absent_a_moment_ago(
    tiny_config: EngineConfig,
    store: TroubledStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(absent_module, "DELAYS", Delays(first=600.0, longest=600.0))
    hints = QueuedHints()
    node = start_node(tiny_config, store, hints=hints)
    try:
        assert isinstance(node.ask("a").error, AdapterNotFound)
        gen = publish(node, tmp_path, "a", 1)
        assert isinstance(node.ask("a").error, AdapterNotFound), "remembered"
        hints.queue.put(Hint(DEFAULT_TENANT, "a", gen))
        wait_until(lambda: not isinstance(ending(node), AdapterNotFound), within_s=PATIENCE)
        assert node.ask("a").completed.served.generation == gen
    finally:
        node.close()


def ending(node: Node) -> Exception | None:
    return getattr(node.ask("a", tokens=1).wait().events[-1], "error", None)


def test_bytes_damaged_on_the_way_are_fetched_once_more_and_served(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    node = start_tiny(store)
    publish(node, tmp_path, "a", 1)
    store.damaged[""] = 1
    assert node.ask("a").tokens
    assert max(store.blobs.values()) == 2


def test_bytes_that_stay_damaged_are_quarantined_and_the_old_version_serves(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    node = start_tiny(store, max_staleness=0.0)
    publish(node, tmp_path, "a", 1)
    before = node.ask("a").tokens
    second = publish(node, tmp_path, "a", 2)
    store.damaged[""] = 10**6
    assert isinstance(node.ask("a", min_generation=second).error, AdapterCorrupt)
    reads = sum(store.blobs.values())
    assert isinstance(node.ask("a", min_generation=second).error, AdapterCorrupt)
    assert node.ask("a").tokens == before
    assert sum(store.blobs.values()) == reads, "what is corrupt is not fetched again"
    store.damaged.clear()
    third = publish(node, tmp_path, "a", 3)
    assert node.ask("a", min_generation=third).completed.served.generation == third
    node.settle()


def test_while_the_store_is_away_residents_serve_and_the_rest_says_when_to_come_back(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    node = start_tiny(store, max_staleness=0.0)
    for seed, name in enumerate("ab"):
        publish(node, tmp_path, name, seed)
    before = node.ask("a").tokens
    store.away = True
    first = node.engine.pool_use().result(PATIENCE).stale_seconds
    for _ in range(5):
        assert node.ask("a").tokens == before
        cold = node.ask("b").error
        assert isinstance(cold, StoreDown)
        assert cold.retry_after
    assert node.engine.pool_use().result(PATIENCE).stale_seconds > first
    store.away = False
    wait_until(lambda: not isinstance(cold_ending(node), StoreDown), within_s=PATIENCE)
    assert node.ask("b").tokens
    node.settle()


def cold_ending(node: Node) -> Exception | None:
    return getattr(node.ask("b", tokens=1).wait().events[-1], "error", None)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_takes_nothing_costs_no_answer(
    tiny_config: EngineConfig,
    store: TroubledStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: int,
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(reason, os.strerror(reason))

    cache = ContentCache(tmp_path / "cache", budget_bytes=2**20)
    node = start_node(tiny_config, store, reader=Reader(store, cache=cache))
    try:
        publish(node, tmp_path, "a", 1)
        monkeypatch.setattr("adapter_store.cache.os.fsync", refuse)
        assert node.ask("a").tokens
        assert cache.stats.failed_writes > 0
    finally:
        node.close()


def test_when_all_pages_are_pinned_or_busy_a_request_waits_as_long_as_it_has_time(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    page_bytes = start_tiny().engine.info().pool.page_bytes
    node = start_tiny(
        store, pool_bytes=2 * page_bytes, headroom_pages=0, page_wait_seconds=PATIENCE
    )
    for seed, name in enumerate("abc"):
        publish(node, tmp_path, name, seed)
    whole = node.ask("b", tokens=300).tokens
    node.engine.pin(DEFAULT_TENANT, "a").result(PATIENCE)
    busy = node.ask("b", tokens=300).wait(tokens=1)
    refused = node.ask("c", tokens=1, deadline_in=0.3).error
    assert isinstance(refused, PoolFull)
    assert refused.retry_after
    patient = node.ask("c", tokens=1)
    assert busy.tokens == whole, "what a request holds is never taken"
    assert patient.tokens
    pinned = [v.served.adapter for v in node.engine.list_loaded().result(PATIENCE) if v.pinned]
    assert pinned == ["a"]
    node.settle()


def test_pins_swaps_and_newcomers_in_a_pool_that_is_too_small_for_all_never_lock_up(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    page_bytes = start_tiny().engine.info().pool.page_bytes
    node = start_tiny(
        store,
        pool_bytes=4 * page_bytes,
        page_wait_seconds=0.02,
        poll_seconds_without_hints=0.05,
    )
    for seed, name in enumerate("abcde"):
        publish(node, tmp_path, name, seed)
    node.engine.pin(DEFAULT_TENANT, "a").result(PATIENCE)
    answers = []
    for turn in range(4):
        for seed, name in enumerate("abcde"):
            answers.append(node.ask(name, tokens=12))
            if name in "ab":
                publish(node, tmp_path, name, 10 * (turn + 1) + seed)
    for answer in answers:
        assert answer.tokens
    wait_until(lambda: served_gen(node, "a") == 5, within_s=PATIENCE)
    node.settle()


def test_a_storm_of_publishes_costs_few_fetches_and_ends_on_the_newest(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    node = start_tiny(store, poll_seconds_without_hints=0.02)
    publish(node, tmp_path, "a", 0)
    node.ask("a").wait()
    store.gate.clear()
    store.blobs.clear()
    publish(node, tmp_path, "a", 1)
    wait_until(lambda: bool(store.blobs), within_s=PATIENCE)
    for seed in range(2, 20):
        newest = publish(node, tmp_path, "a", seed)
    wait_until(
        lambda: node.engine._loader._reader.known_gen(DEFAULT_TENANT, "a") == newest,
        within_s=PATIENCE,
    )
    store.gate.set()
    wait_until(lambda: served_gen(node, "a") == newest, within_s=PATIENCE)
    files = 2
    fetched = sum(store.blobs.values())
    assert fetched <= 3 * files, "the first, the newest, and one that the watcher was at"


def test_a_cancelled_request_drops_its_lease_once_and_its_version_can_go(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path
) -> None:
    node = start_tiny(store)
    publish(node, tmp_path, "a", 1)
    free = node.engine.info().pool.pages_free
    running = node.ask("a", tokens=400).wait(tokens=2)
    beside = node.ask("a", tokens=30)
    for _ in range(3):
        node.engine.cancel(running.request_id)
    assert isinstance(running.error, Cancelled)
    assert beside.tokens
    node.settle()
    assert node.engine.info().pool.leases == 0
    node.engine.unload(DEFAULT_TENANT, "a").result(PATIENCE)
    assert node.engine.info().pool.pages_free == free

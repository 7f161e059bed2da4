"""Publishers, collectors and the reaper in every order of their store operations: no served chunk
is ever lost. The same search finds each protocol mistake that the model of the protocol knows.

The reading of "no chunk is lost" is the harshest: retention keeps nothing but the newest record.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest

from adapter_store import layout
from adapter_store.commit import Limits
from adapter_store.draft import chunks_of
from adapter_store.gc import Collector, _Collection
from adapter_store.intent import Plan
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage, ObjectStore
from adapter_store.reap import Reaper
from adapter_store.record import Record, decode_record
from adapter_store.retention import Needs, Retention, Roots
from tests.adapter_store.interleavings import Explored, Explorer, Process
from tests.adapter_store.publishing import ADAPTER, TENANT, adapter, publish, publisher


def two_versions() -> dict[str, bytes]:
    """Content 1 published and replaced by content 2: what content 1 left is garbage."""
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2)
    return {key: store.get(key) for key in store.list("").keys}


def ids(first: str) -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"{first}{next(numbers):031x}"


def publishing(seed: int, name: str = "a", *, through: Any = lambda store: store) -> Process:
    limits = Limits(publish_s=60, settle_s=10, parallel=1)

    def run(store: ObjectStore) -> None:
        publisher(through(store), limits=limits, new_txid=ids(name), now=lambda: "").publish(
            TENANT, ADAPTER, adapter(seed)
        )

    return run


def collector(store: ObjectStore, name: str) -> Collector:
    return Collector(
        store,
        retention=Retention(keep=1, younger_s=0),
        warn=lambda text: None,
        parallel=1,
        new_id=ids(name),
        now=lambda: "",
    )


def collecting(name: str) -> Process:
    return lambda store: collector(store, name).collect(TENANT)


def reaping(name: str) -> Process:
    return lambda store: collector(store, name).reap(TENANT, older_s=0)


@cache
def decoded(body: bytes) -> Record:
    return decode_record(body)


def lost_chunk(bodies: Mapping[str, bytes]) -> str:
    """The served chunk that is gone, in words; empty when all are there."""
    newest = min(key for key in bodies if "/log/" in key)
    gone = [c.key for c in chunks_of(decoded(bodies[newest]).contents()) if c.key not in bodies]
    return f"{newest} names {gone[0]}, which is gone" if gone else ""


def explore(**processes: Process) -> Explored:
    return Explorer(two_versions(), processes, lost_chunk).explore()


def test_one_publisher_and_one_collector_lose_nothing_in_any_order() -> None:
    """The publisher brings back the very content that the collector finds to be garbage."""
    found = explore(publisher=publishing(1), collector=collecting("b"))
    assert found.violation == "", found.trace
    assert found.states > 400
    assert found.outcomes == {"publisher: returned", "collector: returned"}


def test_a_reaper_that_takes_the_publisher_for_dead_at_any_moment_loses_nothing() -> None:
    found = explore(publisher=publishing(1), collector=collecting("b"), reaper=reaping("c"))
    assert found.violation == "", found.trace
    assert found.states > 10_000


def test_two_collectors_and_a_publisher_lose_nothing_in_any_order() -> None:
    found = explore(publisher=publishing(1), first=collecting("b"), second=collecting("c"))
    assert found.violation == "", found.trace
    assert found.states > 50_000


class Altered:
    """A store as one mistaken publisher uses it."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.store, verb)


class WritesNoIntent(Altered):
    def put_new(self, key: str, body: bytes) -> None:
        if "/txn/" not in key:
            self.store.put_new(key, body)


class IgnoresPlans(Altered):
    def list(self, prefix: str, **options: Any) -> ListPage:
        if prefix == layout.plans_prefix(TENANT):
            return ListPage((), (), None)
        return self.store.list(prefix, **options)


class ReadsPlansBeforeTheIntent(Altered):
    """Looks at the plans right before it writes its intent, and never again."""

    def put_new(self, key: str, body: bytes) -> None:
        if "/txn/" in key:
            self.seen = self.store.list(layout.plans_prefix(TENANT))
        self.store.put_new(key, body)

    def list(self, prefix: str, **options: Any) -> ListPage:
        if prefix == layout.plans_prefix(TENANT):
            return self.seen
        return self.store.list(prefix, **options)


@pytest.mark.parametrize("mistake", [WritesNoIntent, IgnoresPlans, ReadsPlansBeforeTheIntent])
def test_a_publisher_that_breaks_the_protocol_is_caught(mistake: type[Altered]) -> None:
    found = explore(publisher=publishing(1, through=mistake), collector=collecting("b"))
    assert "which is gone" in found.violation


def looks_once(honest: Callable[[Roots], Needs]) -> Callable[[Roots], Needs]:
    remembered: dict[Roots, Needs] = {}
    return lambda roots: remembered.setdefault(roots, honest(roots))


def log_first(roots: Roots) -> Needs:
    logged = roots._logged()
    return Needs(logged, roots._announced() | roots._pinned())


def test_a_collector_that_does_not_look_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Roots, "read", looks_once(Roots.read))
    found = explore(publisher=publishing(1), collector=collecting("b"))
    assert "which is gone" in found.violation


def test_a_collector_that_reads_the_log_before_the_intents_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Roots, "read", log_first)
    found = explore(publisher=publishing(1), collector=collecting("b"))
    assert "which is gone" in found.violation


def test_a_reaper_that_does_not_fill_the_slot_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "_fence", lambda reaper, intent: None)
    found = explore(publisher=publishing(1), collector=collecting("b"), reaper=reaping("c"))
    assert "which is gone" in found.violation


def drops_all(collection: _Collection, plans: dict[str, Plan], doomed: set[str]) -> int:
    for key in plans:
        collection._store.delete(key)
    return 0


def test_a_collector_that_drops_a_plan_before_its_chunks_are_gone_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Collection, "drop", drops_all)
    found = explore(publisher=publishing(1), first=collecting("b"), second=collecting("c"))
    assert "which is gone" in found.violation


def test_a_publisher_that_uses_a_chunk_key_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = layout.blob_key
    monkeypatch.setattr(
        layout, "blob_key", lambda tenant, sha256, txid, attempt: honest(tenant, sha256, txid, 1)
    )
    found = explore(
        publisher=publishing(1),
        first=collecting("b"),
        second=collecting("c"),
        reaper=reaping("d"),
    )
    assert "which is gone" in found.violation

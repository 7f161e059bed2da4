"""Versions are fetched once, checked, kept within a budget; news of them is neither lost nor
asked for too often."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from adapter_store.errors import (
    Behind,
    IntegrityError,
    NotFound,
    StoreUnavailable,
)
from adapter_store.layout import AdapterRef
from adapter_store.reader import Reader
from adapter_store.reader import Resolved as Found
from adapter_store.record import Chunk, FileEntry, Record, RecordKind, VersionRef
from inference_node.adapters.loader import (
    Filled,
    Learned,
    Loader,
    LoaderEvent,
    Prepared,
    Resolved,
    Target,
    Unfilled,
    Unprepared,
    Unresolved,
)
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterNotFound,
    EngineFailure,
    NodeError,
    StaleNode,
    StoreDown,
)
from tests.inference_node.adapters.contents import MAP, adapter_files, spec

PATIENCE = 20.0
BASE = "ba5e" * 16
MAX_RANK = 32


class ScriptedStore:
    """Stands in for the Reader: serves what it is given, raises what it is told, counts."""

    def __init__(self) -> None:
        self.served: dict[str, tuple[int, VersionRef | None]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.failures: list[Exception] = []
        self.fetched: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def publish(self, name: str, gen: int, *, rank: int = 5, seed: int = 0) -> VersionRef:
        vdig = f"{name}-{rank}-{seed}"
        config = spec(rank).allow_listed()
        files = self.files[vdig] = adapter_files(rank, seed=seed)
        entries = tuple(FileEntry(n, len(b), sha256(b).hexdigest(), ()) for n, b in files.items())
        version = VersionRef(f"v{gen}", vdig, BASE, config, entries)
        self.served[name] = (gen, version)
        return version

    def current(self, tenant: str, adapter: str) -> Record:
        self._fail()
        gen, version = self.served[adapter]
        return cast(Record, SimpleNamespace(gen=gen, active=version))

    def resolve(self, ref: AdapterRef, *, refresh: bool = True, min_generation: int = 0) -> Found:
        self._fail()
        gen, version = self.served.get(ref.adapter, (0, None))
        if gen < min_generation:
            raise Behind(f"{ref} is at generation {gen}, below {min_generation}")
        if version is None:
            raise NotFound(f"{ref.adapter} serves nothing")
        return Found(ref.tenant, ref.adapter, gen, RecordKind.PUBLISH, version)

    def fetch(self, tenant: str, version: VersionRef, *, adapter: str = "") -> dict[str, bytes]:
        self.fetched.append(version.vdig)
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        self._fail()
        return self.files[version.vdig]

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


class Desk:
    """A loader over a scripted store, and the events it posts."""

    def __init__(self, *, host_bytes: int = 2**20, pool_pages: int = 4) -> None:
        self.store = ScriptedStore()
        self.events: queue.Queue[LoaderEvent] = queue.Queue()
        page_bytes = sum(g.shape.page_elements(MAP.layers) for g in MAP.groups) * 4
        self.pool = AdapterPool(
            MAP,
            pool_bytes=pool_pages * page_bytes,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.loader = Loader(
            cast(Reader, self.store),
            modules=MAP,
            pool=self.pool,
            base_fingerprint=BASE,
            dtype=torch.float32,
            host_bytes=host_bytes,
            max_rank=MAX_RANK,
            threads=3,
            post=self.events.put,
        )

    def next(self) -> LoaderEvent:
        return self.events.get(timeout=PATIENCE)

    def prepared(self, target: Target) -> Prepared | Unprepared:
        """Ask and take the answer, as the engine does."""
        self.loader.prepare(target)
        event = self.next()
        assert isinstance(event, Prepared | Unprepared)
        self.loader.settled(event.key)
        return event

    def refusal(self, target: Target) -> NodeError:
        event = self.prepared(target)
        assert isinstance(event, Unprepared)
        return event.error

    def resolution(self, ref: AdapterRef, *, min_generation: int = 0) -> Resolved | Unresolved:
        self.loader.resolve("token", ref, min_generation)
        event = self.next()
        assert isinstance(event, Resolved | Unresolved)
        assert event.token == "token"
        return event

    def unresolved(self, ref: AdapterRef, *, min_generation: int = 0) -> NodeError:
        event = self.resolution(ref, min_generation=min_generation)
        assert isinstance(event, Unresolved)
        return event.error


@pytest.fixture
def desk() -> Iterator[Desk]:
    opened = Desk()
    yield opened
    opened.store.gate.set()
    opened.loader.close()


def target_of(version: VersionRef, *, gen: int = 1, tenant: str = "t") -> Target:
    key = VersionKey(tenant, version.vdig)
    return Target(Entry(tenant, "anna", version.label, gen, key), version)


REF = AdapterRef("t", "anna")


def test_a_reference_resolves_to_one_immutable_entry(desk: Desk) -> None:
    version = desk.store.publish("anna", 3)
    event = desk.resolution(REF, min_generation=3)
    assert isinstance(event, Resolved)
    expected = Entry("t", "anna", "v3", 3, VersionKey("t", version.vdig))
    assert event.target == Target(expected, version)


def test_a_log_below_the_generation_asked_for_says_so_and_when_to_retry(desk: Desk) -> None:
    desk.store.publish("anna", 3)
    error = desk.unresolved(REF, min_generation=4)
    assert isinstance(error, StaleNode)
    assert error.retry_after


def test_a_pinned_reference_does_not_heed_the_generation_asked_for(desk: Desk) -> None:
    desk.store.publish("anna", 3)
    event = desk.resolution(AdapterRef("t", "anna", label="v3"), min_generation=4)
    assert isinstance(event, Resolved)


def test_a_version_for_another_base_is_refused_before_anything_is_fetched(desk: Desk) -> None:
    version = replace(desk.store.publish("anna", 1), base="0ther" * 8)
    desk.store.served["anna"] = (1, version)
    error = desk.unresolved(REF)
    assert isinstance(error, AdapterIncompatible)
    assert error.details == {"adapter_base": version.base, "node_base": BASE}
    assert isinstance(desk.refusal(target_of(version)), AdapterIncompatible)
    assert desk.store.fetched == []


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NotFound("no"), AdapterNotFound),
        (StoreUnavailable("no"), StoreDown),
        (IntegrityError("no"), AdapterCorrupt),
        (RuntimeError("no"), EngineFailure),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_every_failure_to_resolve_is_answered_with_what_is_now_true(
    desk: Desk, failure: Exception, expected: type[NodeError]
) -> None:
    desk.store.failures.append(failure)
    error = desk.unresolved(REF)
    assert type(error) is expected
    assert error.__cause__ is failure


def test_a_version_is_fetched_once_however_often_it_is_asked_for_meanwhile(desk: Desk) -> None:
    target = target_of(desk.store.publish("anna", 1))
    desk.store.gate.clear()
    for _ in range(5):
        desk.loader.prepare(target)
    assert desk.store.entered.acquire(timeout=PATIENCE)
    for _ in range(5):
        desk.loader.prepare(target)
    desk.store.gate.set()
    assert isinstance(desk.next(), Prepared)
    desk.loader.close()
    assert desk.store.fetched == [target.entry.key.vdig]
    assert desk.events.empty()


def test_control_without_the_note_of_what_is_in_flight_a_version_is_fetched_twice(
    desk: Desk,
) -> None:
    target = target_of(desk.store.publish("anna", 1))
    desk.store.gate.clear()
    desk.loader.prepare(target)
    desk.loader.settled(target.entry.key)
    desk.loader.prepare(target)
    assert desk.store.entered.acquire(timeout=PATIENCE)
    assert desk.store.entered.acquire(timeout=PATIENCE)
    desk.store.gate.set()
    assert len(desk.store.fetched) == 2


def test_two_versions_are_fetched_side_by_side(desk: Desk) -> None:
    targets = [target_of(desk.store.publish(name, 1)) for name in ("anna", "ben")]
    desk.store.gate.clear()
    for target in targets:
        desk.loader.prepare(target)
    for _ in targets:
        assert desk.store.entered.acquire(timeout=PATIENCE)
    desk.store.gate.set()
    keys = {event.key for event in (desk.next(), desk.next()) if isinstance(event, Prepared)}
    assert keys == {target.entry.key for target in targets}


def test_a_verified_version_is_kept_on_the_host_and_not_fetched_again(desk: Desk) -> None:
    target = target_of(desk.store.publish("anna", 1))
    one, other = desk.prepared(target), desk.prepared(target)
    assert isinstance(one, Prepared)
    assert isinstance(other, Prepared)
    assert other.host is one.host
    assert len(desk.store.fetched) == 1


def test_equal_digests_of_two_tenants_are_fetched_for_each(desk: Desk) -> None:
    version = desk.store.publish("anna", 1)
    desk.prepared(target_of(version, tenant="t"))
    desk.prepared(target_of(version, tenant="u"))
    assert len(desk.store.fetched) == 2


def test_what_the_host_has_no_room_for_is_fetched_again() -> None:
    desk = Desk(host_bytes=1)
    target = target_of(desk.store.publish("anna", 1))
    for _ in range(2):
        assert isinstance(desk.prepared(target), Prepared)
    assert len(desk.store.fetched) == 2
    desk.loader.close()


def test_content_that_fails_its_checks_is_not_fetched_again(desk: Desk) -> None:
    version = desk.store.publish("anna", 1)
    desk.store.files[version.vdig] = adapter_files(5, idle=True)
    for _ in range(2):
        assert isinstance(desk.refusal(target_of(version)), AdapterCorrupt)
    assert len(desk.store.fetched) == 1


def test_a_store_that_was_away_is_asked_again(desk: Desk) -> None:
    target = target_of(desk.store.publish("anna", 1))
    desk.store.failures.append(StoreUnavailable("away"))
    assert isinstance(desk.refusal(target), StoreDown)
    assert isinstance(desk.prepared(target), Prepared)


def test_damaged_bytes_repaired_by_publishing_again_are_served(desk: Desk) -> None:
    """A repair has the same digest and lies in other chunks."""
    version = desk.store.publish("anna", 1)

    def stored_at(key: str) -> VersionRef:
        chunk = Chunk(key, 0, 1, "0" * 64)
        return replace(version, files=tuple(replace(f, chunks=(chunk,)) for f in version.files))

    damaged = target_of(stored_at("first"))
    desk.store.failures.append(IntegrityError("a chunk comes back damaged"))
    assert isinstance(desk.refusal(damaged), AdapterCorrupt)
    assert isinstance(desk.refusal(damaged), AdapterCorrupt)
    repaired = target_of(stored_at("again"), gen=2)
    assert repaired.entry.key == damaged.entry.key
    assert isinstance(desk.prepared(repaired), Prepared)


@pytest.mark.parametrize("size", [0, 10, 500 * 2**20])
def test_a_size_that_no_such_adapter_has_is_refused_before_a_byte_is_fetched(
    desk: Desk, size: int
) -> None:
    version = desk.store.publish("anna", 1)
    lies = tuple(replace(f, size=size) if "model" in f.name else f for f in version.files)
    error = desk.refusal(target_of(replace(version, files=lies)))
    assert isinstance(error, AdapterCorrupt)
    assert desk.store.fetched == []


def test_a_rank_over_the_nodes_limit_is_refused(desk: Desk) -> None:
    assert isinstance(
        desk.prepared(target_of(desk.store.publish("anna", 1, rank=MAX_RANK))), Prepared
    )
    error = desk.refusal(target_of(desk.store.publish("ben", 1, rank=MAX_RANK + 1)))
    assert isinstance(error, AdapterIncompatible)
    assert "LORAPOOL_MAX_RANK" in error.hint


def test_a_version_that_the_whole_pool_could_not_hold_is_refused() -> None:
    desk = Desk(pool_pages=2)
    error = desk.refusal(target_of(desk.store.publish("anna", 1, rank=17)))
    assert isinstance(error, AdapterIncompatible)
    assert "needs 3 pages" in str(error)
    desk.loader.close()


def test_an_error_nobody_foresaw_is_answered_and_tried_again(desk: Desk) -> None:
    target = target_of(desk.store.publish("anna", 1))
    desk.store.failures.append(RuntimeError("surprise"))
    assert isinstance(desk.refusal(target), EngineFailure)
    assert isinstance(desk.prepared(target), Prepared)


def test_filling_copies_the_version_into_its_pages(desk: Desk) -> None:
    slots = SlotTable(desk.pool.allocator)
    event = desk.prepared(target_of(desk.store.publish("anna", 1, rank=12)))
    assert isinstance(event, Prepared)
    staged = slots.stage(event.key, wanted=event.host.pages, scale=event.host.scale)
    desk.loader.fill(staged, event.host)
    assert desk.next() == Filled(staged)
    for (a, b), group in zip(desk.pool.read_back(staged), event.host.groups, strict=True):
        assert group is not None
        assert torch.equal(a, group.a)
        assert torch.equal(b, group.b)


def test_a_copy_that_fails_is_answered(desk: Desk) -> None:
    slots = SlotTable(desk.pool.allocator)
    event = desk.prepared(target_of(desk.store.publish("anna", 1, rank=12)))
    assert isinstance(event, Prepared)
    staged = slots.stage(event.key, wanted=(1, 1), scale=1.0)
    desk.loader.fill(staged, event.host)
    answer = desk.next()
    assert isinstance(answer, Unfilled)
    assert answer.staged is staged
    assert isinstance(answer.error, EngineFailure)


def test_looking_at_a_log_posts_only_what_is_new(desk: Desk) -> None:
    version = desk.store.publish("anna", 3)
    desk.loader.look("t", "anna", 3)
    assert desk.events.empty()
    desk.loader.look("t", "anna", 2)
    event = desk.next()
    assert isinstance(event, Learned)
    assert event.gen == 3
    assert event.target == target_of(version, gen=3)


def test_looking_at_a_log_that_serves_nothing_any_more_posts_a_tombstone(desk: Desk) -> None:
    desk.store.served["anna"] = (4, None)
    desk.loader.look("t", "anna", 3)
    assert desk.next() == Learned("t", "anna", 4, None)

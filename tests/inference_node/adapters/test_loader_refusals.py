"""What a version is refused for, how often that is found out, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from adapter_store.errors import (
    IntegrityError,
    StoreUnavailable,
)
from adapter_store.record import Chunk, VersionRef
from inference_node.adapters.reports import Prepared
from inference_node.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    EngineFailure,
    StoreDown,
)
from tests.inference_node.adapters.contents import adapter_files
from tests.inference_node.adapters.loader_desk import (
    MAX_RANK,
    Desk,
    target_of,
)


@pytest.fixture
def desk() -> Iterator[Desk]:
    opened = Desk()
    yield opened
    opened.store.gate.set()
    opened.loader.close()


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


def test_what_is_remembered_of_a_refusal_keeps_no_adapter_in_memory(desk: Desk) -> None:
    version = desk.store.publish("anna", 1)
    desk.store.files[version.vdig] = adapter_files(5, idle=True)
    first, second = desk.refusal(target_of(version)), desk.refusal(target_of(version))
    assert str(second) == str(first)
    (kept,) = desk.loader._quarantine.values()
    assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None)

"""The bytes of a version: what they cost, and which of them a reader refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapter_store.cache import ContentCache
from adapter_store.errors import IntegrityError, NotFound
from adapter_store.layout import parse_ref
from adapter_store.memory import MemoryStore
from adapter_store.meter import MeteredStore
from adapter_store.reader import Reader
from adapter_store.record import VersionRef
from tests.adapter_store.publishing import (
    ADAPTER,
    REF,
    TENANT,
    adapter,
    publish,
    publisher,
    served_seed,
)


class DamagingStore(MemoryStore):
    """Flips a byte in the first `times` answers that carry a chunk."""

    times = 0

    def get(self, key: str) -> bytes:
        body = super().get(key)
        if "/blob/" in key and self.times > 0:
            self.times -= 1
            return bytes([body[0] ^ 1]) + body[1:]
        return body


def test_a_chunk_damaged_on_the_way_is_fetched_once_more() -> None:
    store = DamagingStore()
    publish(store, 1)
    store.times = 1
    assert served_seed(store) == 1
    assert store.times == 0


def test_a_chunk_that_stays_damaged_is_an_integrity_error_and_not_cached(tmp_path: Path) -> None:
    store = DamagingStore()
    publish(store, 1)
    store.times = 100
    cache = ContentCache(tmp_path, budget_bytes=10**6)
    with pytest.raises(IntegrityError, match="damaged"):
        served_seed(store, cache=cache)
    store.times = 0
    assert served_seed(store, cache=cache) == 1


def test_cached_chunks_cost_no_requests(store: MemoryStore, tmp_path: Path) -> None:
    publish(store, 1)
    metered = MeteredStore(store)
    reader = Reader(metered, cache=ContentCache(tmp_path, budget_bytes=10**6))
    version = reader.resolve(REF).version
    reader.fetch(TENANT, version)
    before = metered.requests
    assert reader.fetch(TENANT, version) == dict(adapter(1).files)
    assert metered.requests == before


def test_what_one_tenant_had_cached_costs_another_the_same_requests_as_anything_new(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Else a tenant that publishes a guess learns by the clock that another one has it."""

    def requests_of(reader: Reader, metered: MeteredStore, tenant: str) -> int:
        version = reader.resolve(parse_ref(ADAPTER, tenant=tenant)).version
        before = metered.requests
        assert reader.fetch(tenant, version) == dict(adapter(1).files)
        return metered.requests - before

    for tenant in (TENANT, "other"):
        publisher(store).publish(tenant, ADAPTER, adapter(1))
    metered = MeteredStore(store)
    reader = Reader(metered, cache=ContentCache(tmp_path, budget_bytes=10**6))
    first = requests_of(reader, metered, TENANT)
    assert first > 0
    assert requests_of(reader, metered, "other") == first
    assert requests_of(reader, metered, TENANT) == requests_of(reader, metered, "other") == 0


def test_a_gone_chunk_of_the_current_version_is_corruption_and_of_an_old_one_is_expiry(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    version = Reader(store).resolve(REF).version
    store.delete(version.files[0].chunks[0].key)
    with pytest.raises(IntegrityError, match="is gone"):
        Reader(store).fetch(TENANT, version, adapter=ADAPTER)
    publish(store, 2)
    with pytest.raises(NotFound, match="no longer kept"):
        Reader(store).fetch(TENANT, version, adapter=ADAPTER)


def test_chunks_out_of_place_are_refused_before_anything_is_fetched(store: MemoryStore) -> None:
    publish(store, 1)
    version = Reader(store).resolve(REF).version
    file = version.files[0]
    chunk = file.chunks[0]
    bad_chunks = [
        replace(chunk, key=chunk.key.replace("/default/", "/other/")),
        replace(chunk, key="v1/format"),
        replace(chunk, offset=1),
        replace(chunk, length=chunk.length - 1),
        replace(chunk, length=-1),
        replace(chunk, length=2**40),
    ]
    metered = MeteredStore(store)
    for bad in bad_chunks:
        moved = _with_file(version, replace(file, chunks=(bad,)))
        with pytest.raises(IntegrityError):
            Reader(metered).fetch(TENANT, moved)
    with pytest.raises(IntegrityError, match="over"):
        Reader(metered).fetch(TENANT, _with_file(version, replace(file, size=2**40)))
    assert metered.requests == 0


def _with_file(version: VersionRef, file: object) -> VersionRef:
    return replace(version, files=(file, *version.files[1:]))  # type: ignore[arg-type]

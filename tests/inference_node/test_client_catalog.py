"""What is published, asked by the client of a real server over what a real publisher wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from inference_node.client import AsyncClient, Client, PublishedVersion, SplitShare, catalog
from inference_node.errors import AdapterNotFound, StaleNode
from tests.adapter_store import publishing
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.publishing import ADAPTER, TENANT
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.rpc.scripted_engine import ScriptedEngine


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def address(store: MemoryStore) -> Iterator[str]:
    reader = lambda: Reader(store)  # noqa: E731
    with running_server(ScriptedEngine(), CONFIG, open_reader=reader) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_an_adapter_is_told_with_all_that_its_log_says(client: Client, store: MemoryStore) -> None:
    first = publishing.publish(store, 1, label="v1").record
    entry = client.catalog.get_adapter(ADAPTER)
    assert (entry.tenant, entry.adapter, entry.generation) == (TENANT, ADAPTER, 1)
    assert (entry.kind, entry.committed_at) == ("publish", first.time)
    assert first.active is not None
    v1 = PublishedVersion("v1", first.active.vdig, CARD.fingerprint, first.active.bytes, rank=4)
    assert (entry.active, entry.staged, entry.split) == (v1, None, ())
    publishing.publish(store, 2, label="v2")
    publishing.split(store, {"v1": 3, "v2": 1})
    entry = client.catalog.get_adapter(ADAPTER)
    assert SplitShare(v1, 3) in entry.split
    publishing.stage(store, 3, label="v3")
    staged = client.catalog.get_adapter(ADAPTER).staged
    assert staged is not None
    assert staged.label == "v3"
    publishing.delete(store)
    gone = client.catalog.get_adapter(ADAPTER)
    assert (gone.kind, gone.active) == ("tombstone", None)


def test_a_reference_means_the_version_that_a_node_would_serve(
    client: Client, store: MemoryStore
) -> None:
    publishing.publish(store, 1, label="v1")
    second = publishing.publish(store, 2, label="v2")
    found = client.catalog.resolve(ADAPTER, min_generation=2)
    assert (found.generation, found.version.digest) == (2, second.vdig)
    assert client.catalog.resolve(f"{ADAPTER}@v1").version.label == "v1"
    with pytest.raises(AdapterNotFound):
        client.catalog.resolve("nobody")
    with pytest.raises(StaleNode):
        client.catalog.resolve(ADAPTER, min_generation=9)


async def test_lists_come_whole_however_many_pages_they_take(
    address: str, client: Client, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "PAGE", 2)
    labels = [f"v{number}" for number in range(5)]
    for seed, label in enumerate(labels):
        publishing.publish(store, seed, label=label)
    names = [f"ada-{number}" for number in range(5)]
    for name in names:
        publishing.publisher(store).publish(TENANT, name, publishing.adapter(1))
    assert sorted(client.catalog.list_adapters()) == sorted([ADAPTER, *names])
    assert [each.label for each in client.catalog.list_versions(ADAPTER)] == labels[::-1]
    async with AsyncClient(address) as other:
        assert {name async for name in other.catalog.list_adapters()} == {ADAPTER, *names}
        listed = [each async for each in other.catalog.list_versions(ADAPTER)]
        assert listed == list(client.catalog.list_versions(ADAPTER))
        assert await other.catalog.get_adapter(ADAPTER) == client.catalog.get_adapter(ADAPTER)
        assert await other.catalog.resolve(ADAPTER) == client.catalog.resolve(ADAPTER)

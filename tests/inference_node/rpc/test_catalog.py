"""The catalog over a real server, told from what a real publisher wrote."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from adapter_store.canary import choose_arm
from adapter_store.errors import StoreUnavailable
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage, ObjectStore
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store
from inference_node.pb.lorapool.v1 import catalog_pb2 as pb
from inference_node.pb.lorapool.v1 import catalog_pb2_grpc
from inference_node.rpc import catalog
from inference_node.rpc.auth import AuthConfig
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import NodeServer
from inference_node.rpc.status import DETAILS_KEY
from tests.adapter_store import publishing
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.publishing import ADAPTER, TENANT
from tests.inference_node.rpc.conftest import CONFIG
from tests.inference_node.rpc.issuer import Issuer
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

Stub = catalog_pb2_grpc.CatalogServiceStub


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def stub(store: MemoryStore) -> AsyncIterator[Stub]:
    async with serving(store) as found:
        yield found


class serving:
    """A node whose catalog reads `store`."""

    def __init__(self, store: ObjectStore, config: ServerConfig = CONFIG) -> None:
        self._engine = ScriptedEngine()
        self._node = NodeServer(self._engine, config, open_reader=lambda: Reader(store))

    async def __aenter__(self) -> Stub:
        await self._node.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._node.port}")
        return catalog_pb2_grpc.CatalogServiceStub(self._channel)

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()
        self._engine.stop()
        await self._node.drain()


async def refused(call: object) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    info = error_details_pb2.ErrorInfo()
    trailers = dict(caught.value.trailing_metadata() or ())
    status_pb2.Status.FromString(trailers[DETAILS_KEY]).details[0].Unpack(info)
    return caught.value.code(), info


async def test_an_adapter_is_told_with_all_that_its_log_says(
    stub: Stub, store: MemoryStore
) -> None:
    first = publishing.publish(store, 1, label="v1")
    told = await stub.GetAdapter(pb.GetAdapterRequest(adapter=ADAPTER))
    assert (told.tenant, told.adapter, told.generation) == (TENANT, ADAPTER, 1)
    assert told.kind == pb.RECORD_KIND_PUBLISH
    assert told.committed_at == first.record.time
    active = first.record.active
    assert active is not None
    assert told.active == pb.Version(
        label="v1",
        digest=active.vdig,
        base_fingerprint=CARD.fingerprint,
        bytes=active.bytes,
        rank=4,
    )
    publishing.publish(store, 2, label="v2")
    publishing.split(store, {"v1": 3, "v2": 1})
    publishing.stage(store, 3, label="v3")
    told = await stub.GetAdapter(pb.GetAdapterRequest(adapter=ADAPTER))
    assert told.staged.label == "v3"
    publishing.delete(store)
    told = await stub.GetAdapter(pb.GetAdapterRequest(adapter=ADAPTER))
    assert told.kind == pb.RECORD_KIND_TOMBSTONE
    assert not told.HasField("active")


async def test_a_split_is_told_and_a_key_resolves_to_its_arm(
    stub: Stub, store: MemoryStore
) -> None:
    publishing.publish(store, 1, label="v1")
    publishing.publish(store, 2, label="v2")
    record = publishing.split(store, {"v1": 3, "v2": 1}).record
    told = await stub.GetAdapter(pb.GetAdapterRequest(adapter=ADAPTER))
    assert {arm.version.label: arm.weight for arm in told.split} == {"v1": 3, "v2": 1}
    for key in ("a", "b", "c", "d", "e"):
        found = await stub.ResolveAdapter(
            pb.ResolveAdapterRequest(adapter=ADAPTER, affinity_key=key)
        )
        assert found.version.label == choose_arm(record, key).label
        assert found.generation == record.gen
    pinned = await stub.ResolveAdapter(
        pb.ResolveAdapterRequest(adapter=f"{ADAPTER}@v1", affinity_key="a", min_generation=99)
    )
    assert pinned.version.label == "v1"


async def test_a_publish_is_told_at_once(stub: Stub, store: MemoryStore) -> None:
    for seed in (1, 2, 3):
        done = publishing.publish(store, seed)
        found = await stub.ResolveAdapter(
            pb.ResolveAdapterRequest(adapter=ADAPTER, min_generation=done.gen)
        )
        assert (found.generation, found.version.digest) == (seed, done.vdig)


async def test_versions_come_in_pages_newest_first_and_a_publish_in_between_loses_none(
    stub: Stub, store: MemoryStore
) -> None:
    for seed in range(7):
        publishing.publish(store, seed, label=f"v{seed}")
    labels: list[str] = []
    token = ""
    while True:
        page = await stub.ListVersions(
            pb.ListVersionsRequest(adapter=ADAPTER, page_size=3, page_token=token)
        )
        labels += [entry.label for entry in page.versions]
        token = page.next_page_token
        if not token:
            break
        publishing.publish(store, 10 + len(labels), label=f"new{len(labels)}")
    assert labels == [f"v{seed}" for seed in reversed(range(7))]


async def names_in_pages(stub: Stub, size: int) -> list[list[str]]:
    pages: list[list[str]] = []
    token = ""
    while token or not pages:
        page = await stub.ListAdapters(pb.ListAdaptersRequest(page_size=size, page_token=token))
        pages.append(list(page.adapters))
        token = page.next_page_token
    return pages


@pytest.mark.services
async def test_names_come_in_pages_from_a_real_store(s3_store: S3Store) -> None:
    publisher = publishing.publisher(s3_store)
    names = [f"ada-{number}" for number in range(5)]
    for name in names:
        publisher.publish(TENANT, name, publishing.adapter(1))
    async with serving(s3_store) as stub:
        pages = await names_in_pages(stub, 2)
        other = await stub.ListAdapters(pb.ListAdaptersRequest(tenant="acme"))
    assert [name for page in pages for name in page] == names
    assert max(map(len, pages)) == 2
    assert list(other.adapters) == []


UNPUBLISHED = [
    ("GetAdapter", pb.GetAdapterRequest(adapter="nobody")),
    ("ListVersions", pb.ListVersionsRequest(adapter="nobody")),
    ("ResolveAdapter", pb.ResolveAdapterRequest(adapter="nobody")),
    ("ResolveAdapter", pb.ResolveAdapterRequest(adapter=f"{ADAPTER}@v9")),
]


@pytest.mark.parametrize(("method", "message"), UNPUBLISHED, ids=range(len(UNPUBLISHED)))
async def test_what_is_not_published_is_not_found(
    stub: Stub, store: MemoryStore, method: str, message: object
) -> None:
    publishing.publish(store, 1)
    code, info = await refused(getattr(stub, method)(message))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")


async def test_a_generation_that_nobody_published_is_not_reached(
    stub: Stub, store: MemoryStore
) -> None:
    publishing.publish(store, 1)
    code, info = await refused(
        stub.ResolveAdapter(pb.ResolveAdapterRequest(adapter=ADAPTER, min_generation=2))
    )
    assert (code, info.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "GENERATION_NOT_REACHED",
    )


def token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.fixture
async def guarded(store: MemoryStore, issuer: Issuer) -> AsyncIterator[Stub]:
    """A node that asks for tokens, over three adapters of two tenants."""
    publisher = publishing.publisher(store)
    for tenant, name in (("acme", "pirate"), ("acme", "poet"), ("other", "pirate")):
        publisher.publish(tenant, name, publishing.adapter(1), label="v1")
    async with serving(store, replace(CONFIG, auth=AuthConfig(tokens=issuer.rules))) as stub:
        yield stub


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


def bearing(issuer: Issuer, **scope: list[str]) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {issuer.token(lorapool=scope)}"),)


async def test_a_caller_sees_its_scope_and_everything_else_as_absent(
    guarded: Stub, issuer: Issuer
) -> None:
    me = bearing(issuer, tenants=["acme"], adapters=["pirate", "none"], roles=["catalog"])
    told = await guarded.GetAdapter(
        pb.GetAdapterRequest(tenant="acme", adapter="pirate"), metadata=me
    )
    assert told.active.label == "v1"

    async def answer(tenant: str, adapter: str, method: str, kind: type) -> tuple[object, str]:
        asked = kind(tenant=tenant, adapter=adapter)
        code, info = await refused(getattr(guarded, method)(asked, metadata=me))
        return code, str(info).replace(adapter, "X")

    for method, kind in (
        ("GetAdapter", pb.GetAdapterRequest),
        ("ListVersions", pb.ListVersionsRequest),
        ("ResolveAdapter", pb.ResolveAdapterRequest),
    ):
        absent = await answer("acme", "none", method, kind)
        assert absent[0] is grpc.StatusCode.NOT_FOUND
        assert await answer("acme", "poet", method, kind) == absent
        assert await answer("other", "pirate", method, kind) == absent


async def test_a_listing_tells_names_in_scope_and_its_token_none_of_the_others(
    guarded: Stub, issuer: Issuer
) -> None:
    me = bearing(issuer, tenants=["acme"], adapters=["pirate"], roles=["catalog"])
    mine = await guarded.ListAdapters(
        pb.ListAdaptersRequest(tenant="acme", page_size=1), metadata=me
    )
    assert (list(mine.adapters), mine.next_page_token) == (["pirate"], "")
    for tenant in ("other", "nobody"):
        found = await guarded.ListAdapters(pb.ListAdaptersRequest(tenant=tenant), metadata=me)
        assert found == pb.ListAdaptersResponse()
    both = bearing(issuer, tenants=["acme"], adapters=["p*"], roles=["catalog"])
    first = await guarded.ListAdapters(
        pb.ListAdaptersRequest(tenant="acme", page_size=1), metadata=both
    )
    second = await guarded.ListAdapters(
        pb.ListAdaptersRequest(tenant="acme", page_size=1, page_token=first.next_page_token),
        metadata=both,
    )
    assert (list(first.adapters), list(second.adapters)) == (["pirate"], ["poet"])
    assert second.next_page_token == ""


async def test_the_catalog_needs_its_role(guarded: Stub, issuer: Issuer) -> None:
    me = bearing(issuer, tenants=["acme"], adapters=["*"], roles=["generate"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.ListAdapters(pb.ListAdaptersRequest(tenant="acme"), metadata=me)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


REFUSED = [
    ("tenant", "GetAdapter", pb.GetAdapterRequest(tenant="Not OK", adapter="a")),
    ("adapter", "GetAdapter", pb.GetAdapterRequest()),
    ("adapter", "GetAdapter", pb.GetAdapterRequest(adapter="../escape")),
    ("adapter", "GetAdapter", pb.GetAdapterRequest(adapter="ada@v1")),
    ("adapter", "ListVersions", pb.ListVersionsRequest(adapter="ada@v1")),
    ("page_size", "ListVersions", pb.ListVersionsRequest(adapter="a", page_size=1001)),
    ("page_token", "ListVersions", pb.ListVersionsRequest(adapter="a", page_token="*")),
    ("page_token", "ListVersions", pb.ListVersionsRequest(adapter="a", page_token=token("x.v1"))),
    ("page_size", "ListAdapters", pb.ListAdaptersRequest(page_size=1001)),
    ("page_token", "ListAdapters", pb.ListAdaptersRequest(page_token="x" * 2049)),
    ("page_token", "ListAdapters", pb.ListAdaptersRequest(page_token="é")),
    ("adapter", "ResolveAdapter", pb.ResolveAdapterRequest(adapter="ada@sha256:short")),
    (
        "affinity_key",
        "ResolveAdapter",
        pb.ResolveAdapterRequest(adapter="a", affinity_key="x" * 257),
    ),
    (
        "min_generation",
        "ResolveAdapter",
        pb.ResolveAdapterRequest(adapter="a", min_generation=-1),
    ),
]


@pytest.mark.parametrize(
    ("field", "method", "message"),
    REFUSED,
    ids=[f"{m}-{f}-{i}" for i, (f, m, _) in enumerate(REFUSED)],
)
async def test_a_field_out_of_bounds_is_refused_by_its_path(
    stub: Stub, field: str, method: str, message: object
) -> None:
    code, info = await refused(getattr(stub, method)(message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert info.metadata["field"] == field


class Stuck(MemoryStore):
    """Answers a listing only once it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.asked = threading.Semaphore(0)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        self.asked.release()
        assert self.go_on.wait(30)
        return super().list(prefix, delimiter=delimiter, limit=limit, token=token)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    store = Stuck()
    yield store
    store.go_on.set()


async def test_a_store_that_does_not_answer_ends_the_call_at_its_deadline(stuck: Stuck) -> None:
    async with serving(stuck) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListAdapters(pb.ListAdaptersRequest(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        stuck.go_on.set()


async def test_a_call_without_a_deadline_gets_one(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MAX_SECONDS", 0.1)
    async with serving(stuck) as stub:
        code, info = await refused(stub.ListAdapters(pb.ListAdaptersRequest()))
        assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        stuck.go_on.set()


async def test_reads_beyond_the_bound_are_told_to_come_back_and_a_place_is_free_again_at_the_end(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MAX_READS", 2)
    async with serving(stuck) as stub:
        calls = [stub.ListAdapters(pb.ListAdaptersRequest()) for _ in range(2)]
        for _ in calls:
            await asyncio.to_thread(stuck.asked.acquire, timeout=10)
        code, info = await refused(stub.ListAdapters(pb.ListAdaptersRequest()))
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        stuck.go_on.set()
        for call in calls:
            await call
        await stub.ListAdapters(pb.ListAdaptersRequest())


async def test_a_store_that_is_away_is_said_to_be(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object, **options: object) -> ListPage:
        raise StoreUnavailable("secret-endpoint:9000 refused")

    monkeypatch.setattr(MemoryStore, "list", away)
    code, info = await refused(stub.GetAdapter(pb.GetAdapterRequest(adapter="a")))
    assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert "secret" not in str(info)

"""AdapterService on its own port of a real server, over scripted orders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from inference_node import errors
from inference_node.errors import BadConfiguration
from inference_node.pb.lorapool.v1 import adapters_pb2 as pb
from inference_node.pb.lorapool.v1 import adapters_pb2_grpc, inference_pb2, inference_pb2_grpc
from inference_node.request import Served
from inference_node.residency import Tier, VersionState
from inference_node.rpc import adapters
from inference_node.rpc.auth import AuthConfig
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import NodeServer
from inference_node.rpc.status import CODES, DETAILS_KEY
from tests.inference_node.rpc.conftest import CONFIG
from tests.inference_node.rpc.issuer import Issuer
from tests.inference_node.rpc.scripted_control import POOL, ScriptedControl, version
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

Stub = adapters_pb2_grpc.AdapterServiceStub
ADMIN = replace(CONFIG, admin_listen="127.0.0.1:0", drain_delay=0)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "LOOK_SECONDS", 0.01)


@pytest.fixture
def control() -> ScriptedControl:
    return ScriptedControl()


@pytest.fixture
def config() -> ServerConfig:
    return ADMIN


@pytest.fixture
async def node(
    engine: ScriptedEngine, control: ScriptedControl, config: ServerConfig
) -> AsyncIterator[NodeServer]:
    server = NodeServer(engine, config, control=control)
    await server.start()
    yield server
    engine.stop()
    await server.drain()


@pytest.fixture
async def stub(node: NodeServer) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.admin_port}") as channel:
        yield adapters_pb2_grpc.AdapterServiceStub(channel)


async def refused(call: object) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    info = error_details_pb2.ErrorInfo()
    trailers = dict(caught.value.trailing_metadata() or ())
    status_pb2.Status.FromString(trailers[DETAILS_KEY]).details[0].Unpack(info)
    return caught.value.code(), info


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_every_order_reaches_the_engine_and_its_end_the_caller(
    stub: Stub, control: ScriptedControl
) -> None:
    loaded = await stub.PreloadAdapter(
        pb.PreloadAdapterRequest(tenant="acme", adapter="ada@v2", min_generation=4), timeout=10
    )
    assert loaded.loaded.tier == pb.TIER_DEVICE
    assert loaded.loaded.state == pb.LOAD_STATE_RESIDENT
    assert (loaded.loaded.bytes, list(loaded.loaded.pages)) == (8192, [2])
    assert (await stub.PinAdapter(pb.PinAdapterRequest(adapter="ada"))).loaded.pinned
    assert not (await stub.UnpinAdapter(pb.UnpinAdapterRequest(adapter="ada"))).loaded.pinned
    gone = await stub.UnloadAdapter(pb.UnloadAdapterRequest(adapter="ada", force=True))
    assert (gone.version.adapter, gone.failed_requests) == ("ada", 2)
    assert control.orders == [
        ("preload", "acme", "ada@v2"),
        ("pin", "default", "ada"),
        ("unpin", "default", "ada"),
        ("unload", "default", "ada"),
    ]
    assert control.options[0]["min_generation"] == 4
    assert 0 < float(str(control.options[0]["timeout"])) < 10
    assert control.options[3]["force"] is True


async def test_the_pool_is_told_group_by_group(stub: Stub) -> None:
    told = (await stub.GetPoolStatus(pb.GetPoolStatusRequest())).pool
    group = told.groups[0]
    assert (group.name, group.total, group.free, group.idle, group.held) == ("q+k+v", 8, 5, 1, 2)
    assert group.total == group.free + group.idle + group.held + group.pinned + group.condemned
    assert (told.host_versions, told.host_bytes, told.host_budget) == (2, 2048, 4096)
    assert told.stale_seconds == 1.5


async def test_what_is_loaded_comes_in_pages(stub: Stub, control: ScriptedControl) -> None:
    control.loaded = tuple(version(f"ada-{n}", digest=f"{n:064x}") for n in range(5))
    names: list[str] = []
    token = ""
    while token or not names:
        page = await stub.ListLoadedAdapters(
            pb.ListLoadedAdaptersRequest(page_size=2, page_token=token)
        )
        names += [each.version.adapter for each in page.loaded]
        token = page.next_page_token
    assert names == [f"ada-{n}" for n in range(5)]


@pytest.mark.parametrize(
    "kind",
    [
        errors.AdapterNotFound,
        errors.AdapterNotLoaded,
        errors.PinRefused,
        errors.PoolFull,
        errors.StoreDown,
        errors.AdapterCorrupt,
    ],
)
async def test_an_order_that_ends_badly_says_why(
    stub: Stub, control: ScriptedControl, kind: type[errors.NodeError]
) -> None:
    control.fails = kind("no")
    code, info = await refused(stub.PinAdapter(pb.PinAdapterRequest(adapter="ada")))
    assert (code, info.reason) == (CODES[kind], kind.reason)


async def test_a_malformed_reference_is_refused_by_its_field(
    stub: Stub, control: ScriptedControl
) -> None:
    code, info = await refused(stub.UnloadAdapter(pb.UnloadAdapterRequest(adapter="../x")))
    assert (code, info.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "adapter")
    assert control.orders == []


async def test_a_caller_that_leaves_withdraws_its_order(
    stub: Stub, control: ScriptedControl
) -> None:
    control.answers = False
    call = stub.PreloadAdapter(pb.PreloadAdapterRequest(adapter="ada"))
    asking = asyncio.ensure_future(call.initial_metadata())
    await until(lambda: bool(control.pending))
    call.cancel()
    await until(control.pending[0].cancelled)
    asking.cancel()


async def test_an_order_that_nobody_answers_ends(
    stub: Stub, control: ScriptedControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "ORDER_SECONDS", 0.05)
    monkeypatch.setattr(adapters, "GRACE", 0.05)
    control.answers = False
    code, info = await refused(stub.PinAdapter(pb.PinAdapterRequest(adapter="ada")))
    assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert control.pending[0].cancelled()


async def test_the_service_is_not_on_the_port_of_requests(node: NodeServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        stub = adapters_pb2_grpc.AdapterServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetPoolStatus(pb.GetPoolStatusRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.admin_port}") as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference.Generate(inference_pb2.GenerateRequest(prompt="hi"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_without_an_address_of_its_own_there_is_no_service(
    engine: ScriptedEngine, control: ScriptedControl
) -> None:
    server = NodeServer(engine, CONFIG, control=control)
    await server.start()
    assert server.admin_port == 0
    engine.stop()
    await server.drain()


def test_an_address_that_others_reach_needs_tls_and_auth() -> None:
    with pytest.raises(BadConfiguration, match=r"0\.0\.0\.0:50052"):
        replace(CONFIG, admin_listen="0.0.0.0:50052")


async def test_a_watcher_hears_everything_first_and_then_what_changes(
    stub: Stub, control: ScriptedControl
) -> None:
    control.loaded = (version("ada", digest="a" * 64), version("bob", digest="b" * 64))
    call = stub.WatchPool(pb.WatchPoolRequest())
    first = await call.read()
    assert [each.version.adapter for each in first.changed] == ["ada", "bob"]
    assert first.pool.resident == 1
    busy = replace(control.loaded[0], leases=3, idle_seconds=0.0)
    control.loaded = (busy, version("cyd", digest="c" * 64))
    second = await call.read()
    assert {each.version.adapter: each.leases for each in second.changed} == {"ada": 3, "cyd": 0}
    assert [each.digest for each in second.gone] == ["b" * 64]
    control.pool = replace(POOL, leases=3)
    third = await call.read()
    assert (third.pool.leases, len(third.changed), len(third.gone)) == (3, 0, 0)
    # That news has grown older is told with the next change, and is none.
    control.pool, looks = replace(POOL, leases=3, stale_seconds=99.0), control.looks
    await until(lambda: control.looks > looks + 1)
    control.pool = replace(POOL, leases=4, stale_seconds=99.0)
    fourth = await call.read()
    assert (fourth.pool.leases, fourth.pool.stale_seconds) == (4, 99.0)
    call.cancel()


async def test_a_watcher_hears_that_nothing_changes(
    engine: ScriptedEngine, control: ScriptedControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "HEARTBEAT_SECONDS", 0.1)
    control.loaded = (version("ada"),)
    server = NodeServer(engine, ADMIN, control=control)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
        call = adapters_pb2_grpc.AdapterServiceStub(channel).WatchPool(pb.WatchPoolRequest())
        await call.read()
        # Idling is no change, and none is invented.
        control.loaded = (replace(control.loaded[0], idle_seconds=99.0),)
        again = await call.read()
        assert (len(again.changed), len(again.gone)) == (0, 0)
        call.cancel()
    engine.stop()
    await server.drain()


async def test_a_slow_watcher_is_told_the_newest_alone_and_costs_no_queue(
    stub: Stub, control: ScriptedControl
) -> None:
    many = tuple(version(f"ada-{n}", digest=f"{n:064x}") for n in range(500))
    control.loaded = many
    call = stub.WatchPool(pb.WatchPoolRequest())
    await call.read()
    for turn in range(1, 200):
        looks = control.looks
        control.loaded = tuple(replace(each, leases=turn) for each in many)
        await until(lambda looks=looks: control.looks > looks)  # type: ignore[misc]
    messages, leases = 0, {0}
    while leases != {199}:
        news = await call.read()
        leases = {each.leases for each in news.changed}
        messages += 1
    # What fits the transport's buffers was sent, and nothing was kept for later beside it.
    assert messages < 100
    call.cancel()


async def test_nobody_looks_when_nobody_watches(stub: Stub, control: ScriptedControl) -> None:
    call = stub.WatchPool(pb.WatchPoolRequest())
    await call.read()
    assert control.looks > 0
    call.cancel()

    async def still() -> bool:
        before = control.looks
        await asyncio.sleep(0.1)
        return control.looks == before

    async with asyncio.timeout(5):
        while not await still():
            pass


async def test_too_many_watchers_are_told_to_come_back(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "MAX_WATCHERS", 1)
    call = stub.WatchPool(pb.WatchPoolRequest())
    await call.read()
    other = stub.WatchPool(pb.WatchPoolRequest())
    code, info = await refused(other.read())
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    call.cancel()


async def test_a_draining_node_ends_its_watchers_and_does_not_wait_for_them(
    engine: ScriptedEngine, control: ScriptedControl
) -> None:
    server = NodeServer(engine, replace(ADMIN, drain_seconds=60), control=control)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
        call = adapters_pb2_grpc.AdapterServiceStub(channel).WatchPool(pb.WatchPoolRequest())
        await call.read()
        leaving = asyncio.create_task(server.drain())
        while not call.done():
            await asyncio.wait([asyncio.ensure_future(call.code())], timeout=5)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(leaving, 10)


async def test_what_was_answered_is_told_by_adapter(
    node: NodeServer, stub: Stub, engine: ScriptedEngine
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        for adapter in ("ada", "ada@v3", ""):
            await inference.Generate(inference_pb2.GenerateRequest(prompt="hi", adapter=adapter))
        info = await inference.GetModelInfo(inference_pb2.GetModelInfoRequest())
    assert info.generated_tokens == 6
    call = stub.WatchPool(pb.WatchPoolRequest())
    load = (await call.read()).load
    assert (load.generated_tokens, load.completed, load.failed) == (6, 3, 0)
    assert [(each.adapter, each.generated_tokens) for each in load.hottest] == [("ada", 4), ("", 2)]
    call.cancel()


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


async def test_an_operator_sees_and_orders_within_its_scope(
    engine: ScriptedEngine, control: ScriptedControl, issuer: Issuer
) -> None:
    config = replace(ADMIN, auth=AuthConfig(tokens=issuer.rules))
    server = NodeServer(engine, config, control=control)
    await server.start()
    scope = {"tenants": ["acme"], "adapters": ["pirate"], "roles": ["operate"]}
    me = (("authorization", f"Bearer {issuer.token(lorapool=scope)}"),)
    shared = version("poet", tenant="acme", digest="a" * 64)
    alias = Served("acme", "pirate", "v7", 7, "a" * 64)
    control.loaded = (
        replace(shared, names=(shared.served, alias)),
        version("chef", tenant="acme", digest="b" * 64, tier=Tier.STORE,
                state=VersionState.FETCHING),
        version("pirate", tenant="other", digest="c" * 64),
    )  # fmt: skip
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
        stub = adapters_pb2_grpc.AdapterServiceStub(channel)
        seen = await stub.ListLoadedAdapters(pb.ListLoadedAdaptersRequest(), metadata=me)
        assert [each.version.adapter for each in seen.loaded] == ["pirate"]
        assert [name.adapter for name in seen.loaded[0].names] == ["pirate"]
        watch = stub.WatchPool(pb.WatchPoolRequest(), metadata=me)
        assert [each.version.adapter for each in (await watch.read()).changed] == ["pirate"]
        watch.cancel()
        await stub.PinAdapter(pb.PinAdapterRequest(tenant="acme", adapter="chef"), metadata=me)
        assert control.orders[-1][2].startswith("forbidden-")
        nobody = await refused(stub.GetPoolStatus(pb.GetPoolStatusRequest()))
        assert nobody[0] is grpc.StatusCode.UNAUTHENTICATED
    engine.stop()
    await server.drain()

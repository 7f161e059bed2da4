"""Health, reflection and leaving in order, on the real server over a scripted engine."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_node.errors import BadConfiguration
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import SERVICE, NodeServer
from tests.inference_node.rpc.scripted_engine import ScriptedEngine, follows, hangs

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def streaming(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamCall:
    """A running stream."""
    message = pb.StreamGenerateRequest(request=pb.GenerateRequest(prompt="hi"))
    return inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(message)


async def rest(call: grpc.aio.UnaryStreamCall) -> str:
    """The text not read yet."""
    text = ""
    while (event := await call.read()) is not grpc.aio.EOF:
        text += event.delta.text
    return text


async def health(channel: grpc.aio.Channel, name: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=name)
    )
    return int(answer.status)


async def test_health_answers_by_every_name(channel: grpc.aio.Channel) -> None:
    for name in ("", "liveness", "readiness", SERVICE):
        assert await health(channel, name) == SERVING
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await health(channel, "nonsense")


async def test_a_dead_engine_is_neither_live_nor_ready(
    channel: grpc.aio.Channel, engine: ScriptedEngine
) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service="liveness")
    )
    assert (await watch.read()).status == SERVING
    engine.alive = False
    async with asyncio.timeout(5):
        assert (await watch.read()).status == NOT_SERVING
    assert await health(channel, "liveness") == NOT_SERVING
    watch.cancel()


async def test_reflection_lists_the_service(channel: grpc.aio.Channel) -> None:
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    async for answer in call:
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_a_draining_node_is_live_not_ready_and_finishes_what_runs(
    engine: ScriptedEngine,
) -> None:
    gate = threading.Event()
    engine.script = follows(words=["one ", "two"], gate=gate)
    config = ServerConfig(listen="127.0.0.1:0", drain_delay=0.3, drain_seconds=10)
    node = NodeServer(engine, config)
    await node.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = streaming(channel)
        await call.read()
        drain = asyncio.create_task(node.drain())
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="readiness")
        )
        async with asyncio.timeout(5):
            async for change in watch:
                if change.status == NOT_SERVING:
                    break
        assert await health(channel, "liveness") == SERVING
        gate.set()
        assert await rest(call) == "one two"
        watch.cancel()
        await asyncio.wait_for(drain, 10)
    assert engine.stopped
    assert engine.cancelled == []


async def test_who_only_watches_does_not_keep_a_node_from_leaving(engine: ScriptedEngine) -> None:
    config = ServerConfig(listen="127.0.0.1:0", drain_delay=0, drain_seconds=60)
    node = NodeServer(engine, config)
    await node.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        gate = threading.Event()
        engine.script = follows(words=["one ", "two"], gate=gate)
        call = streaming(channel)
        await call.read()
        drain = asyncio.create_task(node.drain())
        assert (await watch.read()).status == NOT_SERVING
        gate.set()
        assert await rest(call) == "one two", "who is served is waited for"
        await asyncio.wait_for(drain, 10)
    assert engine.cancelled == []


async def test_what_outlasts_the_drain_is_ended(engine: ScriptedEngine) -> None:
    engine.script = hangs
    config = ServerConfig(listen="127.0.0.1:0", drain_delay=0, drain_seconds=0.1)
    node = NodeServer(engine, config)
    await node.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = streaming(channel)
        await call.read()
        await asyncio.wait_for(node.drain(), 10)
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await rest(call)
    assert len(engine.cancelled) == 1
    assert engine.stopped


async def test_a_second_signal_skips_the_waiting(engine: ScriptedEngine) -> None:
    engine.script = hangs
    config = ServerConfig(listen="127.0.0.1:0", drain_delay=60, drain_seconds=60)
    node = NodeServer(engine, config)
    await node.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = streaming(channel)
        await call.read()
        hurry = asyncio.Event()
        drain = asyncio.create_task(node.drain(hurry))
        hurry.set()
        await asyncio.wait_for(drain, 10)
    assert engine.stopped


async def test_a_port_in_use_is_refused_by_name(server: NodeServer) -> None:
    other = NodeServer(ScriptedEngine(), ServerConfig(listen=f"127.0.0.1:{server.port}"))
    with pytest.raises(BadConfiguration) as caught:
        await other.start()
    assert "LORAPOOL_LISTEN" in caught.value.hint

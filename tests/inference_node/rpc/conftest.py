"""A real server on loopback over a scripted engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import NodeServer
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

CONFIG = ServerConfig(
    listen="127.0.0.1:0", drain_delay=0.05, drain_seconds=5.0, max_request_seconds=30.0
)


@pytest.fixture
async def server(engine: ScriptedEngine) -> AsyncIterator[NodeServer]:
    node = NodeServer(engine, CONFIG)
    await node.start()
    yield node
    engine.stop()
    await node.drain()


@pytest.fixture
async def channel(server: NodeServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel

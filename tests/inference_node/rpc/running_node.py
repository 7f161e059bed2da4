"""A node on a thread of its own, as far from its caller as a blocking client needs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from adapter_store.reader import Reader
from inference_node.residency import ResidencyControl
from inference_node.rpc.accounts import NOBODY, Witness
from inference_node.rpc.engine_port import Engine
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import Membership, NodeServer
from inference_node.tracing import OFF, Tracing

CONFIG = ServerConfig(listen="127.0.0.1:0", drain_delay=0, drain_seconds=2)


@contextlib.contextmanager
def running_node(engine: Engine, config: ServerConfig = CONFIG) -> Iterator[str]:
    """The address of a server over `engine`."""
    with running_server(engine, config) as server:
        yield f"127.0.0.1:{server.port}"


@contextlib.contextmanager
def running_server(
    engine: Engine,
    config: ServerConfig,
    *,
    open_reader: Callable[[], Reader] | None = None,
    control: ResidencyControl | None = None,
    fleet: Membership | None = None,
    witness: Witness = NOBODY,
    tracing: Tracing = OFF,
) -> Iterator[NodeServer]:
    """A server that has started, with whatever services it has what they need for."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> NodeServer:
        server = NodeServer(
            engine,
            config,
            open_reader=open_reader,
            control=control,
            fleet=fleet,
            witness=witness,
            tracing=tracing,
        )
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield server
    finally:
        engine.stop()
        asyncio.run_coroutine_threadsafe(server.drain(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

"""A node on a thread of its own, as far from its caller as a blocking client needs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from inference_node.rpc.engine_port import Engine
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import NodeServer

CONFIG = ServerConfig(listen="127.0.0.1:0", drain_delay=0, drain_seconds=2)


@contextlib.contextmanager
def running_node(engine: Engine, config: ServerConfig = CONFIG) -> Iterator[str]:
    """The address of a server over `engine`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> NodeServer:
        server = NodeServer(engine, config)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        engine.stop()
        asyncio.run_coroutine_threadsafe(server.drain(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

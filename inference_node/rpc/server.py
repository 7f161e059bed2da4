"""Listen, say how healthy the node is, and leave without dropping anyone.

    SIGTERM -> readiness NOT_SERVING -> drain_delay (load balancers notice)
            -> refuse new calls, running ones get drain_seconds -> engine drained and stopped

A second signal skips the waiting. Liveness stays SERVING while the engine lives, so that nothing
kills a node for draining.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adapter_store.reader import Reader
from inference_node.errors import BadConfiguration
from inference_node.pb.lorapool.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from inference_node.rpc.auth import Gate
from inference_node.rpc.catalog import CatalogServicer
from inference_node.rpc.engine_port import Engine
from inference_node.rpc.limits import ServerConfig, channel_options
from inference_node.rpc.servicers import InferenceServicer
from inference_node.rpc.tls import server_credentials

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
CATALOG = catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"].full_name
LIVENESS = "liveness"
READINESS = ("", "readiness")
HEALTH_POLL = 0.5
"""Seconds between two looks at the engine."""
ENGINE_GRACE = 5.0
"""Seconds the engine gets to end what the calls' end has cancelled."""

_log = logging.getLogger(__name__)


class NodeServer:
    """A gRPC server over one engine. `start`, then `drain` once."""

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        *,
        open_reader: Callable[[], Reader] | None = None,
    ) -> None:
        """`open_reader` opens the store for CatalogService, which is not served without."""
        self._engine = engine
        self._config = config
        self._servicer = InferenceServicer(engine, max_request_seconds=config.max_request_seconds)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[Gate(config.auth)],
            options=channel_options(),
            maximum_concurrent_rpcs=config.max_concurrent_rpcs,
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._servicer, self._server)
        self._services = [SERVICE]
        self._catalog = None if open_reader is None else CatalogServicer(open_reader)
        if self._catalog is not None:
            catalog_pb2_grpc.add_CatalogServiceServicer_to_server(self._catalog, self._server)
            self._services.append(CATALOG)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self.port = 0
        """The port in use, once started."""

    async def start(self) -> None:
        """Listen. Raises BadConfiguration when address, certificate or key cannot be had."""
        try:
            self.port = self._bind()
        except BaseException:
            await self._server.stop(None)
            raise
        await self._tell_health(alive=self._engine.healthy())
        await self._server.start()
        self._watch = asyncio.create_task(self._watch_engine())

    def _bind(self) -> int:
        listen, tls = self._config.listen, self._config.tls
        credentials = None if tls is None else server_credentials(tls)
        try:
            if credentials is None:
                return self._server.add_insecure_port(listen)
            return self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise BadConfiguration(
                f"cannot listen on {listen}",
                hint="another program holds the port, or the address is not this machine's; "
                "set LORAPOOL_LISTEN",
            ) from error

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Leave in order; `hurry` ends every wait. The engine is stopped afterwards."""
        hurry = hurry or asyncio.Event()
        self._draining = True
        await self._tell_health(alive=self._engine.healthy())
        await _wait(hurry, self._config.drain_delay)
        stopping = asyncio.create_task(self._server.stop(self._config.drain_seconds))
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopping.done():
            await self._server.stop(0)
        await stopping
        if self._watch is not None:
            self._watch.cancel()
        if not await asyncio.to_thread(self._engine.drain, ENGINE_GRACE):
            _log.warning("the engine still had work after every call had ended")
        await asyncio.to_thread(self._engine.stop)
        self._servicer.close()
        if self._catalog is not None:
            self._catalog.close()

    async def _watch_engine(self) -> None:
        alive = True
        while True:
            await asyncio.sleep(HEALTH_POLL)
            if self._engine.healthy() != alive:
                alive = not alive
                _log.error("the engine is %s", "back" if alive else "not healthy")
                await self._tell_health(alive=alive)

    async def _tell_health(self, *, alive: bool) -> None:
        ready = alive and not self._draining
        await self._health.set(LIVENESS, _serving(alive))
        for name in (*READINESS, *self._services):
            await self._health.set(name, _serving(ready))


def _serving(good: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    status = health_pb2.HealthCheckResponse
    return status.SERVING if good else status.NOT_SERVING


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


async def serve(
    engine: Engine,
    config: ServerConfig,
    on_ready: Callable[[int], None],
    *,
    open_reader: Callable[[], Reader] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `on_ready` is told the port."""
    loop = asyncio.get_running_loop()
    leave, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if leave.is_set() else leave).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = NodeServer(engine, config, open_reader=open_reader)
    await server.start()
    on_ready(server.port)
    await leave.wait()
    await server.drain(hurry)

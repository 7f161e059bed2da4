"""Serve, say how healthy the node is, and leave without dropping anyone.

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
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from adapter_store.reader import Reader
from inference_node.pb.lorapool.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from inference_node.residency import ResidencyControl
from inference_node.rpc.accounts import NOBODY, Witness
from inference_node.rpc.adapters import AdapterServicer
from inference_node.rpc.arm_book import ArmBook
from inference_node.rpc.catalog import CatalogServicer
from inference_node.rpc.door import Door, Service
from inference_node.rpc.engine_port import Engine
from inference_node.rpc.herald import Herald, Identity, Registry
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.quotas import Quotas, quota_table
from inference_node.rpc.servicers import InferenceServicer
from inference_node.rpc.tally import Tally
from inference_node.tracing import OFF, Tracing

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
CATALOG = catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"].full_name
ADAPTERS = adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name
HEALTH_POLL = 0.5
"""Seconds between two looks at the engine."""
LAST_WORDS = 1.0
"""Seconds for answers that are on their way when the last call is done."""
ENGINE_GRACE = 5.0
"""Seconds the engine gets to end what the calls' end has cancelled."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """The fleet that a node is part of, and its id there."""

    registry: Registry
    node: str


class NodeServer:
    """The gRPC servers over one engine. `start`, then `drain` once."""

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        *,
        open_reader: Callable[[], Reader] | None = None,
        control: ResidencyControl | None = None,
        fleet: Membership | None = None,
        witness: Witness = NOBODY,
        tracing: Tracing = OFF,
    ) -> None:
        """`open_reader` opens the store for CatalogService, which is not served without.

        `control` takes the orders of AdapterService, where the configuration has an address for it,
        and says what the node has, where it is to tell a `fleet`. `witness` is told what becomes of
        calls.
        """
        self._engine = engine
        self._config = config
        self._control = control
        self._fleet = fleet
        self._herald: Herald | None = None
        witness = self._arms = ArmBook(witness)
        self._tally = tally = Tally()
        self._servicer = InferenceServicer(
            engine,
            tally,
            Quotas(quota_table(config.quotas), clock=time.monotonic),
            witness,
            tracing,
            max_request_seconds=config.max_request_seconds,
        )
        self._catalog = None if open_reader is None else CatalogServicer(open_reader)
        self._adapters = None
        self._door = Door(
            config.listen, "LORAPOOL_LISTEN", config, self._services(), witness, tracing
        )
        self._doors = [self._door]
        if config.admin_listen and control is not None:
            self._adapters = AdapterServicer(control, engine.info, tally)
            add = partial(adapters_pb2_grpc.add_AdapterServiceServicer_to_server, self._adapters)
            services = [Service(ADAPTERS, add)]
            admin = Door(
                config.admin_listen, "LORAPOOL_ADMIN_LISTEN", config, services, witness, tracing
            )
            self._doors.append(admin)
        self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self.port = 0
        """The port in use, once started."""
        self.admin_port = 0
        """The port of AdapterService, once started; 0 where it is not served."""

    def _services(self) -> Iterator[Service]:
        add = partial(inference_pb2_grpc.add_InferenceServiceServicer_to_server, self._servicer)
        yield Service(SERVICE, add)
        if self._catalog is not None:
            yield Service(
                CATALOG,
                partial(catalog_pb2_grpc.add_CatalogServiceServicer_to_server, self._catalog),
            )

    async def start(self) -> None:
        """Listen. Raises BadConfiguration when address, certificate or key cannot be had."""
        try:
            self.port, self.admin_port, *_ = [*(door.bind() for door in self._doors), 0]
        except BaseException:
            await self._close_doors(None)
            raise
        await self._tell_health(alive=self._engine.healthy())
        for door in self._doors:
            await door.open()
        self._watch = asyncio.create_task(self._watch_engine())
        if self._fleet is not None and self._control is not None:
            self._herald = Herald(
                self._fleet.registry,
                Identity(self._fleet.node, reached_at(self._config, self.port)),
                control=self._control,
                info=self._engine.info,
                tally=self._tally,
                arms=self._arms.arms,
            )
            self._herald.start()

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Leave in order; `hurry` ends every wait. The engine is stopped afterwards."""
        hurry = hurry or asyncio.Event()
        self._draining = True
        if self._herald is not None:
            self._herald.drain()
        self._arms.leaving()
        await self._tell_health(alive=self._engine.healthy())
        await _wait(hurry, self._config.drain_delay)
        if self._adapters is not None:
            await self._adapters.leave()
        stopping = asyncio.create_task(self._close_doors(self._config.drain_seconds))
        hurried = asyncio.create_task(hurry.wait())
        done = asyncio.create_task(self._idle())
        await asyncio.wait({stopping, hurried, done}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            # Who only watches is not waited for: a stream of health ends when its caller likes.
            await self._close_doors(0 if hurry.is_set() else LAST_WORDS)
        hurried.cancel()
        done.cancel()
        await stopping
        if self._watch is not None:
            self._watch.cancel()
        if self._herald is not None:
            await asyncio.to_thread(self._herald.stop)
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
        for door in self._doors:
            await door.tell_health(alive=alive, ready=alive and not self._draining)

    async def _idle(self) -> None:
        await asyncio.gather(*(door.idle() for door in self._doors))

    async def _close_doors(self, grace: float | None) -> None:
        await asyncio.gather(*(door.close(grace) for door in self._doors))


def reached_at(config: ServerConfig, port: int) -> str:
    """Where clients reach a node that was given `port`."""
    if config.advertise or config.listen.startswith("unix:"):
        return config.advertise or config.listen
    host = config.listen.rpartition(":")[0]
    everywhere = host.strip("[]") in ("", "0.0.0.0", "::")
    return f"{socket.gethostname() if everywhere else host}:{port}"


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


async def serve(
    engine: Engine,
    config: ServerConfig,
    on_ready: Callable[[int], None],
    *,
    open_reader: Callable[[], Reader] | None = None,
    control: ResidencyControl | None = None,
    fleet: Membership | None = None,
    witness: Witness = NOBODY,
    tracing: Tracing = OFF,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `on_ready` is told the port."""
    loop = asyncio.get_running_loop()
    leave, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if leave.is_set() else leave).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
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
    on_ready(server.port)
    await leave.wait()
    await server.drain(hurry)

"""Envoy before light nodes: real servers on real sockets, over engines that follow a script."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from adapter_store.processes import launch
from adapter_store.services import free_ports
from inference_node.client import Client
from inference_node.client.failures import to_error
from inference_node.client.link import affinity
from inference_node.errors import NodeError
from inference_node.gateway.certificates import render_certificates
from inference_node.gateway.config import GatewayConfig
from inference_node.gateway.program import command
from inference_node.gateway.render import render
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.request import OnEvent, Request, Stopping
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import NodeServer
from tests.adapter_store.waiting import wait_until
from tests.inference_node.rpc.running_node import running_server
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

NODE = ServerConfig(listen="127.0.0.1:0", drain_delay=0.0, drain_seconds=5.0)
PATIENCE = 60.0
FEW = 4
"""Tokens of an answer that only has to come."""
Edit = Callable[[str], str]


class CountingEngine(ScriptedEngine):
    """Counts what reaches it, whether it takes it or not."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def submit(self, request: Request, on_event: OnEvent) -> None:
        self.asked[request.adapter] += 1
        super().submit(request, on_event)


@dataclass
class LightNode:
    """A node over a script."""

    engine: CountingEngine
    server: NodeServer
    leave: Callable[[], None]
    """Drains it, as SIGTERM does."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@dataclass(frozen=True)
class Reply:
    """What came over HTTP."""

    status: int
    body: str


@dataclass
class Gateway:
    """A running Envoy."""

    config: GatewayConfig
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> str:
        return self.config.listen

    def ask(
        self, adapter: str, *, timeout: float = PATIENCE, **headers: str
    ) -> pb.GenerateResponse:
        """Asks once: what the gateway said first is what one sees. Raises NodeError."""
        with grpc.insecure_channel(self.address, [("grpc.enable_retries", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = pb.GenerateRequest(
                prompt="x", adapter=adapter, stopping=pb.Stopping(max_new_tokens=FEW)
            )
            metadata = (*affinity(adapter), *headers.items())
            try:
                return stub.Generate(request, timeout=timeout, metadata=metadata)
            except grpc.RpcError as error:
                raise to_error(error) from None

    def get(self, path: str, *, at: str = "") -> Reply:
        """GET from its address, or from another of this gateway's."""
        host, _, port = (at or self.address).rpartition(":")
        with contextlib.closing(
            http.client.HTTPConnection(host, int(port), timeout=10)
        ) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return Reply(response.status, response.read().decode())

    def metric(self, name: str) -> int:
        """Of the cluster of nodes; `name` is a pattern, and all that match are added up."""
        text = self.get("/metrics", at=self.config.metrics).body
        found = re.findall(rf'^envoy_cluster_{name}{{.*"nodes".*}} (\d+)$', text, re.MULTILINE)
        return sum(map(int, found))

    def healthy(self) -> int:
        """How many nodes it would ask now."""
        return self.metric("membership_healthy")


@contextlib.contextmanager
def running_gateway(
    folder: Path,
    nodes: Sequence[str],
    *,
    edit: Edit = lambda text: text,
    healthy: int | None = None,
    **settings: Any,
) -> Iterator[Gateway]:
    """Envoy before `nodes`, once it finds `healthy` of them so, which is all unless it is said.

    `edit` changes what it reads.
    """
    expected = len(nodes) if healthy is None else healthy
    listen, admin, metrics = (f"127.0.0.1:{port}" for port in free_ports("127.0.0.1", 3))
    config = GatewayConfig(
        nodes=tuple(nodes), listen=listen, admin=admin, metrics=metrics, **settings
    )
    file, log = folder / "envoy.yaml", folder / "envoy.log"
    file.write_text(edit(render(config)))
    if config.certificates is not None:
        config.certificates.write_text(render_certificates(config))
    process = launch(command(file), env={}, folder=folder, log=log, die_with_parent=True)
    gateway = Gateway(config, process, log)

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return gateway.healthy() == expected
        except OSError:
            return False

    try:
        wait_until(up)
        yield gateway
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def light_nodes(count: int, config: ServerConfig = NODE) -> Iterator[list[LightNode]]:
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(count):
            engine = CountingEngine()
            life = stack.enter_context(contextlib.ExitStack())
            server = life.enter_context(running_server(engine, config))
            nodes.append(LightNode(engine, server, life.close))
        yield nodes


class Load:
    """Threads that ask without a break until told to stop; what was refused is kept."""

    def __init__(self, address: str, adapters: Sequence[str], *, threads: int = 4) -> None:
        self._address = address
        self._adapters = adapters
        self._threads = threads
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self.answered = 0
        self.refused: list[NodeError] = []

    def goes_on(self, answers: int) -> None:
        """Wait for so many more."""
        before = self.answered
        wait_until(lambda: self.answered >= before + answers, within_s=PATIENCE)

    def _ask(self, number: int) -> None:
        with Client(self._address) as client:
            turn = number
            while not self._stop.is_set():
                turn += 1
                try:
                    client.generate(
                        "x",
                        adapter=self._adapters[turn % len(self._adapters)],
                        stopping=Stopping(max_new_tokens=FEW),
                    )
                    self.answered += 1
                except NodeError as error:
                    self.refused.append(error)

    def __enter__(self) -> Load:
        self._all = [self._pool.submit(self._ask, number) for number in range(self._threads)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._all:
            each.result(PATIENCE)
        self._pool.shutdown()

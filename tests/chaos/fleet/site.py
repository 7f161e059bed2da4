"""A fleet on loopback: real node processes over real S3 and Redis, each behind its own door."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from adapter_store.record import VersionRef
from adapter_store.services import free_ports
from adapter_store.settings import Endpoints
from inference_node.client import Client
from inference_node.errors import NodeError
from tests.adapter_store.waiting import wait_until
from tests.chaos.bench import ROOT
from tests.chaos.proxy import Fault, HttpRequest, proxied
from tests.integration.node_process import NodeProcess, with_kernels

HOST = "127.0.0.1"
START_S = 240.0
"""Three nodes that start at once on two cores, beside others' work."""
WITH_BUG = (sys.executable, "-m", "tests.chaos.fleet.node")
SETTINGS = {
    "LORAPOOL_LINEARS": "dense",
    "LORAPOOL_DTYPE": "float32",
    "LORAPOOL_DEVICE": "cpu",
    # So that whatever a node fetches is seen at its door.
    "LORAPOOL_CACHE_MB": "0",
    "LORAPOOL_HOST_MB": "64",
    "LORAPOOL_KV_TOKENS": "8192",
    "LORAPOOL_MAX_CONTEXT": "256",
    "LORAPOOL_DRAIN_DELAY": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(slots=True)
class Door:
    """Between one node and the store: notes what content it fetches, and refuses it when shut."""

    shut: bool = False
    _fetched: list[tuple[float, str]] = field(default_factory=list)

    def plan(self, request: HttpRequest) -> Fault | None:
        if request.method != "GET" or "/blob/" not in request.target:
            return None
        if self.shut:
            return Fault.UNAVAILABLE
        self._fetched.append((time.monotonic(), unquote(request.target)))
        return None

    def fetched_since(self, moment: float, version: VersionRef) -> bool:
        """Whether the node has asked for any weights of a version since then.

        Not for its config: equal files are stored once, and every adapter here has the same.
        """
        weights = max(version.files, key=lambda file: file.size)
        keys = [chunk.key for chunk in weights.chunks]
        return any(
            at >= moment and any(target.endswith(key) for key in keys)
            for at, target in list(self._fetched)
        )


@dataclass(slots=True)
class FleetNode:
    """One node, at an address that it keeps from life to life."""

    process: NodeProcess
    door: Door
    scrape: str
    """Where it answers Prometheus."""

    @property
    def address(self) -> str:
        return self.process.listen


@contextlib.contextmanager
def running_fleet(
    endpoints: Endpoints,
    base: Path,
    folder: Path,
    *,
    nodes: int,
    settings: Sequence[tuple[str, str]] = (),
    bugs: Sequence[str] = (),
) -> Iterator[list[FleetNode]]:
    """Nodes that have all started; `settings` beside SETTINGS, `bugs` of tests.chaos.fleet.node."""
    with contextlib.ExitStack() as running:
        fleet = []
        ports = free_ports(HOST, 2 * nodes)
        for number, (port, metrics) in enumerate(zip(ports[:nodes], ports[nodes:], strict=True)):
            door, scrape = Door(), f"{HOST}:{metrics}"
            _, own = running.enter_context(proxied(endpoints, door.plan))
            environment = {
                **SETTINGS,
                **dict(settings),
                **own.environment(),
                "LORAPOOL_BASE_MODEL": str(base),
                "LORAPOOL_METRICS_LISTEN": scrape,
                "PYTHONPATH": str(ROOT),
                "LORAPOOL_CACHE_DIR": str(with_kernels(folder / f"cache-{number}")),
            }
            process = NodeProcess(environment, folder / f"node-{number}", listen=f"{HOST}:{port}")
            if bugs:
                process.program = (*WITH_BUG, ",".join(bugs), "serve")
            running.callback(process.kill)
            fleet.append(FleetNode(process, door, scrape))
        for node in fleet:
            node.process.launch()
        for node in fleet:
            node.process.wait_ready(within_s=START_S)
        yield fleet


def answers(address: str) -> None:
    """Wait until a node takes requests there, or a gateway has one that does."""
    with Client(address) as client:

        def ready() -> bool:
            with contextlib.suppress(NodeError):
                return client.ready(timeout=2.0)
            return False

        wait_until(ready, within_s=START_S)

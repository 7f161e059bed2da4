"""What runs: a store with the adapters, nodes, Envoy."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from adapter_store.commit import Publisher
from adapter_store.embedded import HOST, EmbeddedStack
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.services import free_ports
from adapter_store.settings import StoreSettings
from adapter_store.validate import read_adapter_dir
from benchmarks.cpu.adapters import write_adapter
from inference_node.client import Client
from inference_node.config import EngineConfig
from inference_node.engine.build import base_card
from inference_node.errors import NodeError
from inference_node.gateway.config import GatewayConfig
from inference_node.gateway.program import command
from inference_node.gateway.render import render

READY_S = 300.0
PUBLISHERS = 4


@dataclass(frozen=True, slots=True)
class Site:
    """Addresses, all on loopback."""

    nodes: tuple[str, ...]
    scrapes: tuple[str, ...]
    """Where each node answers Prometheus."""
    gateway: str
    ring_size: int
    """Of the gateway's configuration."""


def name(number: int) -> str:
    return f"a{number}"


def publish(stack: EmbeddedStack, base: Path, folder: Path, adapters: int) -> None:
    """So many adapters of rank 1 on every q_proj, each with content of its own."""
    card = base_card(EngineConfig(base_model=str(base)))
    modules = {path: shape for path, shape in card.modules.items() if path.endswith("q_proj")}
    store = StoreSettings.model_validate(asdict(stack.endpoints)).open_store()
    store.ensure_bucket()
    publisher = Publisher(store, actor="placement", warn=lambda message: None)

    def one(number: int) -> None:
        written = write_adapter(folder / name(number), modules, rank=1, seed=number)
        publisher.publish(DEFAULT_TENANT, name(number), read_adapter_dir(written, card=card))

    with ThreadPoolExecutor(PUBLISHERS) as pool:
        list(pool.map(one, range(adapters)))


def start(stack: EmbeddedStack, base: Path, *, nodes: int, settings: Mapping[str, str]) -> Site:
    """Nodes and a gateway before them, ready. Raises TimeoutError with the end of a log."""
    ports = free_ports(HOST, 2 * nodes + 3)
    listens = tuple(f"{HOST}:{port}" for port in ports[:nodes])
    scrapes = tuple(f"{HOST}:{port}" for port in ports[nodes : 2 * nodes])
    gateway, admin, metrics = (f"{HOST}:{port}" for port in ports[2 * nodes :])
    for number, (listen, scrape) in enumerate(zip(listens, scrapes, strict=True), start=1):
        own = {
            "LORAPOOL_LISTEN": listen,
            "LORAPOOL_METRICS_LISTEN": scrape,
            "LORAPOOL_BASE_MODEL": str(base),
            # Each its own disk cache, as on machines of their own.
            "LORAPOOL_CACHE_DIR": str(stack.state_dir / f"cache-{number}"),
            "OMP_NUM_THREADS": "1",
        }
        program = str(Path(sys.executable).parent / "inference-node")
        stack.spawn(f"node-{number}", [program, "serve"], env={**settings, **own}, address=listen)
    config = render(GatewayConfig(nodes=listens, listen=gateway, admin=admin, metrics=metrics))
    file = stack.state_dir / "envoy.yaml"
    file.write_text(config)
    stack.spawn("gateway", command(file), address=gateway)
    _wait(stack)
    return Site(listens, scrapes, gateway, points(config))


def points(config: str) -> int:
    """How many the ring of a gateway's configuration has at least."""
    clusters = yaml.safe_load(config)["static_resources"]["clusters"]
    nodes = next(cluster for cluster in clusters if cluster["name"] == "nodes")
    size: int = nodes["ring_hash_lb_config"]["minimum_ring_size"]
    return size


def _wait(stack: EmbeddedStack) -> None:
    deadline = time.monotonic() + READY_S
    for name, address in stack.addresses.items():
        with Client(address) as client:
            while not _ready(client):
                if time.monotonic() > deadline or not stack.is_running(name):
                    log = stack.log(name).read_text(errors="replace")
                    raise TimeoutError(f"{name} is not ready:\n{log[-2000:]}")
                time.sleep(0.2)


def _ready(client: Client) -> bool:
    with suppress(NodeError):
        return client.ready(timeout=2.0)
    return False

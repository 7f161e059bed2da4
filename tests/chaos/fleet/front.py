"""Envoy before a fleet: where it listens, and what it knows of the nodes behind it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adapter_store.embedded import EmbeddedStack
from adapter_store.services import free_ports
from inference_node.gateway.config import GatewayConfig
from inference_node.gateway.program import command
from inference_node.gateway.render import render
from tests.adapter_store.waiting import wait_until
from tests.chaos.fleet.site import HOST, FleetNode, answers

_ADMIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that did not end well, as Envoy's access log has it."""

    adapter: str
    node: str
    """The last one that was asked."""
    began: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Front:
    """A running gateway; `name` is what the stack knows it by."""

    stack: EmbeddedStack
    name: str
    config: str
    """What it reads, YAML."""
    address: str
    admin: str

    def restart(self) -> None:
        self.stack.restart(self.name)
        answers(self.address)

    def in_flight(self, node: FleetNode) -> int:
        """How many calls it has at a node now."""
        clusters = json.loads(self._told("/clusters?format=json"))["cluster_statuses"]
        hosts = next(cluster for cluster in clusters if cluster["name"] == "nodes")["host_statuses"]
        return next(_active(host) for host in hosts if _address(host) == node.address)

    def healthy(self) -> int:
        """How many nodes it would ask now."""
        return int(self._told("/stats?filter=nodes.membership_healthy").partition(":")[2])

    def failures(self) -> list[Failure]:
        """Each is written within ten seconds of its end."""
        lines = self.stack.log(self.name).read_text(errors="replace").splitlines()
        # What is not whole is still being written.
        whole = [line for line in lines if line.startswith('{"') and line.endswith("}")]
        return [_failure(json.loads(line)) for line in whole]

    def _told(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=_ADMIN_S) as answer:
            body: bytes = answer.read()
        return body.decode()


@contextmanager
def front_before(
    stack: EmbeddedStack,
    nodes: Sequence[FleetNode],
    *,
    name: str = "gateway",
    edit: Callable[[str], str] = lambda text: text,
) -> Iterator[Front]:
    """A gateway that has found its nodes; `edit` changes what it reads."""
    address, admin, metrics = (f"{HOST}:{port}" for port in free_ports(HOST, 3))
    file = stack.state_dir / f"{name}.yaml"
    config = GatewayConfig(
        nodes=tuple(node.address for node in nodes), listen=address, admin=admin, metrics=metrics
    )
    text = edit(render(config))
    file.write_text(text)
    stack.spawn(name, command(file), address=address)
    front = Front(stack, name, text, address, admin)
    try:
        answers(address)
        wait_until(lambda: front.healthy() == len(nodes))
        yield front
    finally:
        stack.kill(name)


def _address(host: dict[str, Any]) -> str:
    socket = host["address"]["socket_address"]
    return f"{socket['address']}:{socket['port_value']}"


def _active(host: dict[str, Any]) -> int:
    return next(int(stat.get("value", 0)) for stat in host["stats"] if stat["name"] == "rq_active")


def _failure(line: dict[str, Any]) -> Failure:
    began = datetime.fromisoformat(line["time"]).timestamp()
    return Failure(line["adapter"] or "", line["node"] or "", began)

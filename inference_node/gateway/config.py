"""What differs between one gateway and another; everything else is in envoy.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from inference_node.addresses import Address, is_loopback, parse_address
from inference_node.errors import BadConfiguration


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerTls:
    """The gateway's own certificate. Paths are those that Envoy sees; nobody reads them here."""

    cert: Path
    key: Path
    client_ca: Path | None = None
    """Callers must show a certificate that one of these signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTls:
    """How the gateway knows its nodes, and they it. Paths are those that Envoy sees."""

    ca: Path
    """Who signs the nodes' certificates."""
    name: str = ""
    """What those certificates are for; empty takes whatever `ca` signed."""
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise BadConfiguration(
                "the gateway's certificate for nodes needs its key, and the key its certificate"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Addresses are `host:port`. Raises BadConfiguration for what cannot be meant."""

    nodes: tuple[str, ...]
    """IP addresses, or names that DNS knows; a name stands for every address it has."""
    listen: str = "127.0.0.1:8080"
    admin: str = "127.0.0.1:9901"
    """Envoy's own administration, which can stop it: on loopback only."""
    metrics: str = "127.0.0.1:9902"
    """`/metrics` for Prometheus and `/ready`, nothing else."""
    tls: CallerTls | None = None
    node_tls: NodeTls | None = None
    certificates: Path | None = None
    """Where Envoy finds the text of `render_certificates`: renewed files are then taken as they
    come. Without it they are read once."""
    origins: tuple[str, ...] = ()
    """Web pages of these origins may call, `https://app.example.com`."""
    max_request_seconds: int = 600
    """Longest deadline that nodes grant, their LORAPOOL_MAX_REQUEST_SECONDS."""
    insecure: bool = False
    """Listen beyond loopback in the clear."""

    def __post_init__(self) -> None:
        if not self.nodes:
            raise BadConfiguration("a gateway needs at least one node")
        kinds = {parse_address(node, "node").is_name for node in self.nodes}
        if len(kinds) > 1:
            raise BadConfiguration("nodes are named by IP addresses or by DNS names, not by both")
        _refuse_names(self.listen, "listen")
        _refuse_names(self.admin, "admin")
        _refuse_names(self.metrics, "metrics")
        if not is_loopback(self.admin):
            raise BadConfiguration(
                f"the administration of Envoy does not listen on {self.admin}",
                hint="it is for this machine alone: 127.0.0.1; metrics have their own address",
            )
        if self.tls is None and not self.insecure and not is_loopback(self.listen):
            raise BadConfiguration(
                f"{self.listen} is reachable from other machines, and calls are not encrypted",
                hint="name a certificate and its key, or pass --insecure where the network itself "
                "is trusted",
            )
        if self.max_request_seconds < 1:
            raise BadConfiguration("max_request_seconds must be at least 1")
        for origin in self.origins:
            _check_origin(origin)

    @property
    def node_addresses(self) -> tuple[Address, ...]:
        return tuple(parse_address(node, "node") for node in self.nodes)


def _refuse_names(text: str, what: str) -> None:
    if parse_address(text, what).is_name:
        raise BadConfiguration(f"{what} {text!r} must be an IP address and a port")


def _check_origin(origin: str) -> None:
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != origin:
        raise BadConfiguration(f"origin {origin!r} does not look like https://app.example.com")

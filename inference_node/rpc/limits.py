"""What one caller, or all of them, may take of the node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference_node.addresses import is_loopback
from inference_node.errors import BadConfiguration
from inference_node.rpc.auth import AuthConfig
from inference_node.rpc.tls import TlsFiles

MAX_MESSAGE_BYTES = 2**20
MAX_METADATA_BYTES = 8 * 2**10
MAX_STREAMS = 1024
"""Calls at once on one connection; further ones wait at the caller's side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the node listens and how long it lets things take. Times are seconds."""

    listen: str = "127.0.0.1:50051"
    """`host:port`, `[ipv6]:port` or `unix:/path`; port 0 takes a free one."""
    admin_listen: str = ""
    """Where operators reach AdapterService; nowhere when empty."""
    advertise: str = ""
    """Where clients reach `listen`, as told to the fleet; empty: `listen` itself."""
    insecure: bool = False
    """Listen beyond loopback although calls are not both encrypted and authenticated."""
    tls: TlsFiles | None = None
    """Plaintext without."""
    auth: AuthConfig | None = None
    """Without, everybody may do everything."""
    quotas: Path | None = None
    """What each tenant may take, see quotas.py; without, whatever is there."""
    max_request_seconds: float = 600.0
    """Longest deadline granted; also that of calls that bring none."""
    drain_delay: float = 2.0
    """Between NOT_SERVING and refusing calls, for load balancers to notice."""
    drain_seconds: float = 30.0
    """How long running calls may go on after that."""
    max_concurrent_rpcs: int = 4096
    """Calls of all kinds at once, at one address; who comes then is told to come back."""
    reflection: bool = True

    def __post_init__(self) -> None:
        if self.max_request_seconds <= 0:
            raise BadConfiguration("max_request_seconds must be above 0")
        if self.drain_delay < 0 or self.drain_seconds < 0:
            raise BadConfiguration("drain_delay and drain_seconds must not be negative")
        if self.max_concurrent_rpcs < 1:
            raise BadConfiguration("max_concurrent_rpcs must be at least 1")
        certified = self.tls is not None and self.tls.client_ca is not None
        if self.auth is not None and self.auth.identities is not None and not certified:
            raise BadConfiguration(
                "LORAPOOL_IDENTITIES_FILE knows callers by a certificate that nobody is asked for",
                hint="set LORAPOOL_TLS_CLIENT_CA_FILE",
            )
        self._check_reach()

    def _check_reach(self) -> None:
        missing = [
            what
            for what, there in (("encrypted", self.tls), ("authenticated", self.auth))
            if there is None
        ]
        if missing and not self.insecure:
            _check_loopback(self.listen, "LORAPOOL_LISTEN", missing)
            if self.admin_listen:
                _check_loopback(self.admin_listen, "LORAPOOL_ADMIN_LISTEN", missing)


def _check_loopback(listen: str, variable: str, missing: list[str]) -> None:
    """Raises BadConfiguration for an address that others reach."""
    if not is_loopback(listen, variable):
        raise BadConfiguration(
            f"listen address {listen!r} is reachable from other machines, and calls are "
            f"not {' and not '.join(missing)}",
            hint="set LORAPOOL_TLS_CERT_FILE and LORAPOOL_JWKS_FILE or _IDENTITIES_FILE, "
            "listen on 127.0.0.1, or pass --insecure (LORAPOOL_INSECURE=1) where the network "
            "itself is trusted",
        )


def channel_options() -> list[tuple[str, int]]:
    """gRPC server settings: sizes, keepalive, and connections that move on to new nodes."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Two nodes on one port would share its calls by chance.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 15 * 60_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.max_connection_age_ms", 30 * 60_000),
        ("grpc.max_connection_age_grace_ms", 10 * 60_000),
    ]

"""Who can reach an address, and by what a request finds its node."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from inference_node.errors import BadConfiguration

AFFINITY_HEADER = "x-adapter-id"
"""Routers that hash it send the requests of an adapter to the nodes that have it loaded."""
PUSHBACK_HEADER = "grpc-retry-pushback-ms"
"""gRPC's own: a refused call may be made again after so many milliseconds; negative for never."""

_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,62})(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,62}))*\.?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens."""

    host: str
    port: int

    @property
    def version(self) -> int:
        """4 or 6 for an IP address; 0 for a name, which takes DNS to know where that is."""
        try:
            return ipaddress.ip_address(self.host).version
        except ValueError:
            return 0

    @property
    def is_name(self) -> bool:
        return self.version == 0

    def __str__(self) -> str:
        """As `parse_address` reads it and URLs have it."""
        return f"[{self.host}]:{self.port}" if self.version == 6 else f"{self.host}:{self.port}"


def parse_address(text: str, what: str) -> Address:
    """`host:port` or `[ipv6]:port`. Raises BadConfiguration that says `what` is wrong."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    address = Address(host, number)
    if not colon or not 0 < number < 65536 or (address.is_name and not _NAME.fullmatch(host)):
        raise BadConfiguration(
            f"{what} {text!r} is not host:port",
            hint="an IP address or a DNS name, and a port from 1 to 65535",
        )
    return address


def is_loopback(address: str, what: str = "address") -> bool:
    """Whether only this machine reaches `address`.

    Raises BadConfiguration that says `what` is wrong when it is none.
    """
    if address.startswith("unix:"):
        return True
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadConfiguration(f"{what} {address!r} is not host:port")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False

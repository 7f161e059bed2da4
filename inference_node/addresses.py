"""Who can reach an address, and by what a request finds its node."""

from __future__ import annotations

import ipaddress

from inference_node.errors import BadConfiguration

AFFINITY_HEADER = "x-adapter-id"
"""Routers that hash it send the requests of an adapter to the nodes that have it loaded."""


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`. Raises BadConfiguration when it is none."""
    if address.startswith("unix:"):
        return True
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadConfiguration(f"address {address!r} is not host:port")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False

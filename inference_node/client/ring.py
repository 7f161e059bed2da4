"""Many nodes without a proxy: gRPC's own hash ring over the header, one node for each adapter.

A node that leaves hands its adapters to the next one on the ring; the others stay where they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from inference_node.addresses import AFFINITY_HEADER, parse_address
from inference_node.errors import BadConfiguration

POLICY: list[dict[str, Any]] = [
    {"ring_hash_experimental": {"minRingSize": 1024, "requestHashHeader": AFFINITY_HEADER}}
]
"""`loadBalancingConfig` of a service config."""
_SWITCH = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"


def target(addresses: Sequence[str]) -> str:
    """The nodes as gRPC names them. Raises BadConfiguration for what it cannot name together."""
    nodes = [parse_address(address, "node") for address in addresses]
    if len(nodes) == 1 and nodes[0].is_name:
        return f"dns:///{nodes[0]}"
    for version, scheme in ((4, "ipv4"), (6, "ipv6")):
        if nodes and all(node.version == version for node in nodes):
            return f"{scheme}:" + ",".join(map(str, nodes))
    raise BadConfiguration(
        f"{', '.join(addresses) or 'an empty list'} cannot be the nodes of one client",
        hint="list IPv4 addresses, or IPv6 addresses, or one DNS name that has them all",
    )


def switch_on() -> None:
    """Have gRPC heed `requestHashHeader`; without this it fails every call of such a channel.

    A variable of this process is all that gRPC reads. One that is set already stays.
    """
    os.environ.setdefault(_SWITCH, "true")

"""How a client is connected: sizes, keepalive, and which node a request belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from inference_node.addresses import AFFINITY_HEADER
from inference_node.client import ring
from inference_node.client.access import Access
from inference_node.client.retries import METHOD_CONFIG

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_ADMIN_ADDRESS = "127.0.0.1:50052"
GENERATE = "lorapool.v1.InferenceService/Generate"
STREAM_GENERATE = "lorapool.v1.InferenceService/StreamGenerate"

Addresses = str | Sequence[str]
"""One node, or what stands before many; or a list: each node, or one DNS name that has them all."""

_KEEPALIVE: list[tuple[str, str | int]] = [
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


@dataclass(frozen=True, slots=True)
class Link:
    """What a channel is made of."""

    target: str
    credentials: grpc.ChannelCredentials | None
    options: list[tuple[str, str | int]]


def open_channel(address: Addresses, access: Access) -> grpc.Channel:
    """Raises BadConfiguration for what `address` or `access` cannot be."""
    link = _link(address, access)
    if link.credentials is None:
        return grpc.insecure_channel(link.target, options=link.options)
    return grpc.secure_channel(link.target, link.credentials, options=link.options)


def open_async_channel(address: Addresses, access: Access) -> grpc.aio.Channel:
    """The same for the running loop."""
    link = _link(address, access)
    if link.credentials is None:
        return grpc.aio.insecure_channel(link.target, options=link.options)
    return grpc.aio.secure_channel(link.target, link.credentials, options=link.options)


def _link(address: Addresses, access: Access) -> Link:
    config: dict[str, Any] = {"methodConfig": METHOD_CONFIG}
    if isinstance(address, str):
        addresses, target = [address], address
    else:
        addresses, target = list(address), ring.target(address)
        ring.switch_on()
        config["loadBalancingConfig"] = ring.POLICY
    options = [("grpc.service_config", json.dumps(config)), *_KEEPALIVE]
    if access.server_name:
        options.append(("grpc.ssl_target_name_override", access.server_name))
    return Link(target, access.channel_credentials(*addresses), options)


def affinity(adapter: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a request under `adapter`: its versions share a node's memory."""
    name = adapter.partition("@")[0]
    # What is no name is refused by the node; gRPC itself would refuse the header less kindly.
    return ((AFFINITY_HEADER, name),) if name.isascii() and name.isprintable() and name else ()

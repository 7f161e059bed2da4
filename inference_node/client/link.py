"""How a client is connected: sizes, keepalive, retries, and which node a request belongs to."""

from __future__ import annotations

import json

import grpc

from inference_node.addresses import AFFINITY_HEADER
from inference_node.client.access import Access

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_ADMIN_ADDRESS = "127.0.0.1:50052"
GENERATE = "lorapool.v1.InferenceService/Generate"
STREAM_GENERATE = "lorapool.v1.InferenceService/StreamGenerate"

# Only UNAVAILABLE is tried again: no node was reached, or it stops, or its store is away. The node
# says when (grpc-retry-pushback-ms), and what has begun to be answered is never repeated.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": f"lorapool.v1.{name}Service"}
                for name in ("Inference", "Catalog", "Adapter")
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


def open_channel(address: str, access: Access) -> grpc.Channel:
    """Raises BadConfiguration for what `access` cannot be."""
    credentials = access.channel_credentials(address)
    if credentials is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def open_async_channel(address: str, access: Access) -> grpc.aio.Channel:
    """The same for the running loop."""
    credentials = access.channel_credentials(address)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def affinity(adapter: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a request under `adapter`: its versions share a node's memory."""
    name = adapter.partition("@")[0]
    # What is no name is refused by the node; gRPC itself would refuse the header less kindly.
    return ((AFFINITY_HEADER, name),) if name.isascii() and name.isprintable() and name else ()

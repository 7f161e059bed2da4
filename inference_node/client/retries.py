"""When a call is made again: no node was reached, or it stops, or its store is away.

Only UNAVAILABLE is tried again. The node may say when (`grpc-retry-pushback-ms`), and what has
begun to be answered is never repeated. gRPC does it for calls with one answer. Streams are opened
again by the client: under a retry policy some of grpcio's blocking streams never end, not even at
their deadline, when connections are lost while they begin (1.85.1).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import grpc

from inference_node.addresses import PUSHBACK_HEADER

ATTEMPTS = 4
_FIRST_S, _LONGEST_S, _FACTOR = 0.1, 1.0, 2
_STREAMS = (
    ("lorapool.v1.InferenceService", "StreamGenerate"),
    ("lorapool.v1.AdapterService", "WatchPool"),
)

METHOD_CONFIG: list[dict[str, Any]] = [
    {
        "name": [
            {"service": f"lorapool.v1.{name}Service"}
            for name in ("Inference", "Catalog", "Adapter")
        ],
        "retryPolicy": {
            "maxAttempts": ATTEMPTS,
            "initialBackoff": f"{_FIRST_S}s",
            "maxBackoff": f"{_LONGEST_S}s",
            "backoffMultiplier": _FACTOR,
            "retryableStatusCodes": [grpc.StatusCode.UNAVAILABLE.name],
        },
    },
    {"name": [{"service": service, "method": method} for service, method in _STREAMS]},
]
"""Of a service config: what names a method goes before what names its service."""


class Attempts:
    """How often one stream is opened, and when, within its `timeout` seconds."""

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = clock() + timeout
        self._made = 1

    @property
    def left(self) -> float:
        """Seconds."""
        return max(self._until - self._clock(), 0.0)

    def pause(self, error: grpc.RpcError) -> float | None:
        """Seconds until it is opened again after `error`; None if that is for the caller."""
        assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), error
        if error.code() is not grpc.StatusCode.UNAVAILABLE or self._made == ATTEMPTS:
            return None
        longest = min(_FIRST_S * _FACTOR ** (self._made - 1), _LONGEST_S)
        asked = dict(error.trailing_metadata() or ()).get(PUSHBACK_HEADER)
        pause = random.uniform(0, longest) if asked is None else _seconds(asked)
        if not 0 <= pause < self.left:
            return None
        self._made += 1
        return pause


def _seconds(pushback: str | bytes) -> float:
    """Negative for never, which is also what gRPC takes anything else for that is no number."""
    try:
        return int(pushback) / 1000
    except ValueError:
        return -1.0

"""How many calls there may be at once: gRPC's own limit does not say when to come back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from inference_node.errors import QueueFull
from inference_node.rpc.handlers import Around, Wrapping
from inference_node.rpc.status import refusal

PROBE = "/grpc.health.v1.Health/Check"
"""Always answered: who is busy is not to be taken for dead."""
RESERVE = 256
"""Calls over the limit that gRPC lets in, to be told so."""
RETRY_SECONDS = 1.0
Context = grpc.aio.ServicerContext[Any, Any]


class Turnstile(Wrapping):
    """Counts the calls of one server, of all kinds together."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._inside = 0

    def around(self, method: str) -> Around | None:
        return None if method == PROBE else self._counted

    @contextlib.asynccontextmanager
    async def _counted(self, context: Context) -> AsyncIterator[None]:
        if self._inside >= self._most:
            told = refusal(
                QueueFull(f"{self._inside} calls are in progress", retry_after=RETRY_SECONDS)
            )
            await context.abort(told.code, told.message, told.trailers)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

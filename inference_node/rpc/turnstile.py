"""How many calls there may be at once: gRPC's own limit does not say when to come back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from inference_node.errors import QueueFull
from inference_node.rpc.handlers import Around, Wrapping
from inference_node.rpc.status import refusal

PROBE = "/grpc.health.v1.Health/Check"
"""Always answered: who is busy is not to be taken for dead."""
LASTING = frozenset(
    {
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/lorapool.v1.AdapterService/WatchPool",
    }
)
"""Calls that end when their caller likes and not when something is done: nobody stays for them."""
RESERVE = 256
"""Calls over the limit that gRPC lets in, to be told so."""
RETRY_SECONDS = 1.0
Context = grpc.aio.ServicerContext[Any, Any]


class Turnstile(Wrapping):
    """Counts the calls of one server, of all kinds together."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._inside = self._lasting = 0
        self._left = asyncio.Event()

    def around(self, method: str) -> Around | None:
        if method == PROBE:
            return None
        return self._staying if method in LASTING else self._working

    async def idle(self) -> None:
        """Wait until nothing is being done for anybody."""
        while self._inside > self._lasting:
            self._left.clear()
            await self._left.wait()

    @contextlib.asynccontextmanager
    async def _working(self, context: Context) -> AsyncIterator[None]:
        await self._check(context)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    @contextlib.asynccontextmanager
    async def _staying(self, context: Context) -> AsyncIterator[None]:
        async with self._working(context):
            self._lasting += 1
            try:
                yield
            finally:
                self._lasting -= 1

    async def _check(self, context: Context) -> None:
        if self._inside >= self._most:
            told = refusal(
                QueueFull(f"{self._inside} calls are in progress", retry_after=RETRY_SECONDS)
            )
            await context.abort(told.code, told.message, told.trailers)

"""How many calls there may be at once: gRPC's own limit does not say when to come back."""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType
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
        return partial(_Passing, self, method in LASTING)

    async def idle(self) -> None:
        """Wait until nothing is being done for anybody."""
        while self._inside > self._lasting:
            self._left.clear()
            await self._left.wait()

    async def come(self, context: Context, *, lasting: bool) -> None:
        """One more; aborts the call when there are too many."""
        if self._inside >= self._most:
            told = refusal(
                QueueFull(f"{self._inside} calls are in progress", retry_after=RETRY_SECONDS)
            )
            await context.abort(told.code, told.message, told.trailers)
        self._inside += 1
        self._lasting += lasting

    def leave(self, *, lasting: bool) -> None:
        """One of those that came."""
        self._inside -= 1
        self._lasting -= lasting
        self._left.set()


class _Passing:
    """One call."""

    __slots__ = ("_context", "_lasting", "_turnstile")

    def __init__(self, turnstile: Turnstile, lasting: bool, context: Context) -> None:
        self._turnstile = turnstile
        self._lasting = lasting
        self._context = context

    async def __aenter__(self) -> None:
        await self._turnstile.come(self._context, lasting=self._lasting)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._turnstile.leave(lasting=self._lasting)

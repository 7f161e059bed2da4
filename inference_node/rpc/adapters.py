"""`lorapool.v1.AdapterService`: orders about what is on the node, for operators and routers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from adapter_store.layout import AdapterRef
from inference_node.errors import DeadlineExpired, Draining, QueueFull
from inference_node.pb.lorapool.v1 import adapters_pb2 as pb
from inference_node.pb.lorapool.v1 import adapters_pb2_grpc
from inference_node.request import ModelInfo
from inference_node.residency import ORDER_SECONDS, LoadedVersion, ResidencyControl
from inference_node.rpc import convert, residents
from inference_node.rpc.auth import caller, grant
from inference_node.rpc.pool_watch import Load, Look, PoolWatch
from inference_node.rpc.published import page_token
from inference_node.rpc.scopes import Scope
from inference_node.rpc.status import Answering
from inference_node.rpc.tally import Tally

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 10.0
MAX_WATCHERS = 64
GRACE = 5.0
"""Seconds past its deadline after which an order that nobody answered is given up."""

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class AdapterServicer(adapters_pb2_grpc.AdapterServiceServicer):
    """Hands orders to the engine and waits for what it says of them."""

    def __init__(
        self, control: ResidencyControl, info: Callable[[], ModelInfo], tally: Tally
    ) -> None:
        self._control = control
        self._info = info
        self._tally = tally
        self._watch = PoolWatch(self._look, period=LOOK_SECONDS, heartbeat=HEARTBEAT_SECONDS)

    async def PreloadAdapter(
        self, request: pb.PreloadAdapterRequest, context: Context
    ) -> pb.PreloadAdapterResponse:
        async with Answering(context):
            least = convert.to_generation(request.min_generation)

            def order(ref: AdapterRef, seconds: float) -> Future[LoadedVersion]:
                return self._control.preload(
                    ref.tenant, str(ref), min_generation=least, timeout=seconds
                )

            done = await self._ordered(request.tenant, request.adapter, context, order)
            return pb.PreloadAdapterResponse(loaded=residents.loaded(done))

    async def PinAdapter(
        self, request: pb.PinAdapterRequest, context: Context
    ) -> pb.PinAdapterResponse:
        async with Answering(context):

            def order(ref: AdapterRef, seconds: float) -> Future[LoadedVersion]:
                return self._control.pin(ref.tenant, str(ref), timeout=seconds)

            done = await self._ordered(request.tenant, request.adapter, context, order)
            return pb.PinAdapterResponse(loaded=residents.loaded(done))

    async def UnpinAdapter(
        self, request: pb.UnpinAdapterRequest, context: Context
    ) -> pb.UnpinAdapterResponse:
        async with Answering(context):

            def order(ref: AdapterRef, seconds: float) -> Future[LoadedVersion]:
                return self._control.unpin(ref.tenant, str(ref))

            done = await self._ordered(request.tenant, request.adapter, context, order)
            return pb.UnpinAdapterResponse(loaded=residents.loaded(done))

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: Context
    ) -> pb.UnloadAdapterResponse:
        async with Answering(context):
            done = await self._ordered(
                request.tenant,
                request.adapter,
                context,
                lambda ref, seconds: self._control.unload(
                    ref.tenant, str(ref), force=request.force, timeout=seconds
                ),
            )
            return residents.unloaded(done)

    async def ListLoadedAdapters(
        self, request: pb.ListLoadedAdaptersRequest, context: Context
    ) -> pb.ListLoadedAdaptersResponse:
        async with Answering(context):
            size = convert.to_page_size(request.page_size)
            after = convert.from_page_token(request.page_token)
            found = await asyncio.wrap_future(self._control.list_loaded())
            shown = sorted(_visible(found, caller().scope), key=_place)
            seen = [version for version in shown if _place(version) > after]
            return pb.ListLoadedAdaptersResponse(
                loaded=[residents.loaded(version) for version in seen[:size]],
                next_page_token=page_token(_place(seen[size - 1])) if seen[size:] else "",
            )

    async def GetPoolStatus(
        self, request: pb.GetPoolStatusRequest, context: Context
    ) -> pb.GetPoolStatusResponse:
        async with Answering(context):
            use = await asyncio.wrap_future(self._control.pool_use())
            return pb.GetPoolStatusResponse(pool=residents.pool(use))

    # Written to the context, not yielded: as in StreamGenerate.
    async def WatchPool(  # type: ignore[override]
        self, request: pb.WatchPoolRequest, context: Context
    ) -> None:
        async with Answering(context):
            if self._watch.watchers >= MAX_WATCHERS:
                raise QueueFull(f"{MAX_WATCHERS} callers watch this node", retry_after=1.0)
            scope = caller().scope
            async with contextlib.aclosing(self._watch.changes()) as changes:
                async for change in changes:
                    await context.write(
                        pb.WatchPoolResponse(
                            pool=residents.pool(change.pool),
                            changed=[residents.loaded(v) for v in _visible(change.changed, scope)],
                            gone=[residents.named(v.served) for v in _visible(change.gone, scope)],
                            load=residents.load(change.load, self._tally, scope),
                        )
                    )

    async def leave(self) -> None:
        """The node stops: whoever watches is told so."""
        await self._watch.end(Draining("this node is stopping", retry_after=1.0))

    async def _ordered(
        self,
        tenant: str,
        adapter: str,
        context: Context,
        order: Callable[[AdapterRef, float], Future[T]],
    ) -> T:
        """Give an order under the name that the caller may use, and wait for its end."""
        ref = convert.to_ref(convert.to_tenant(tenant), adapter)
        granted = grant(ref.tenant, str(ref))
        remaining = context.time_remaining()
        # What the engine says of an order that takes too long is to reach the caller in time.
        seconds = ORDER_SECONDS if remaining is None else min(0.9 * remaining, ORDER_SECONDS)
        with granted.in_words_of_the_question():
            given = order(convert.to_ref(granted.tenant, granted.adapter), seconds)
            try:
                async with asyncio.timeout(seconds + GRACE):
                    return await asyncio.wrap_future(given)
            except TimeoutError:
                raise DeadlineExpired("the engine did not carry the order out in time") from None

    async def _look(self) -> Look:
        pool = await asyncio.wrap_future(self._control.pool_use())
        loaded = await asyncio.wrap_future(self._control.list_loaded())
        info = self._info()
        return Look(pool, loaded, Load(info.running, info.waiting, self._tally.totals))


def _visible(versions: tuple[LoadedVersion, ...], scope: Scope) -> list[LoadedVersion]:
    """Those that `scope` covers under any of their names, with nothing of the other names."""
    seen = []
    for version in versions:
        named = [n for n in (version.served, *version.names) if scope.covers(n.tenant, n.adapter)]
        if named:
            names = tuple(name for name in version.names if name in named)
            seen.append(replace(version, served=named[0], names=names))
    return seen


def _place(version: LoadedVersion) -> str:
    """Where it stands in a listing: by tenant, adapter and digest."""
    served = version.served
    return f"{served.tenant} {served.adapter} {served.digest}"

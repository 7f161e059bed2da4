"""Orders to a node about what is on it, for threads and for asyncio: its own address, see README.

Every call is written once, as what goes and how the answer is read; the two classes only send.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from inference_node.client.access import NOBODY, Access
from inference_node.client.calls import (
    LOOK_SECONDS,
    PAGE,
    Call,
    Page,
    send,
    send_async,
    send_pages,
    send_pages_async,
)
from inference_node.client.failures import to_error
from inference_node.client.link import (
    DEFAULT_ADMIN_ADDRESS,
    open_async_channel,
    open_channel,
)
from inference_node.client.residents import (
    PoolChange,
    to_change,
    to_loaded,
    to_pool,
    to_unloaded,
)
from inference_node.pb.lorapool.v1 import adapters_pb2 as pb
from inference_node.pb.lorapool.v1 import adapters_pb2_grpc
from inference_node.residency import ORDER_SECONDS, LoadedVersion, PoolUse, Unloaded


def _preload(adapter: str, tenant: str, min_generation: int) -> Call[LoadedVersion]:
    message = pb.PreloadAdapterRequest(
        tenant=tenant, adapter=adapter, min_generation=min_generation
    )
    return Call("PreloadAdapter", message, lambda answer: to_loaded(answer.loaded))


def _pin(adapter: str, tenant: str) -> Call[LoadedVersion]:
    message = pb.PinAdapterRequest(tenant=tenant, adapter=adapter)
    return Call("PinAdapter", message, lambda answer: to_loaded(answer.loaded))


def _unpin(adapter: str, tenant: str) -> Call[LoadedVersion]:
    message = pb.UnpinAdapterRequest(tenant=tenant, adapter=adapter)
    return Call("UnpinAdapter", message, lambda answer: to_loaded(answer.loaded))


def _unload(adapter: str, tenant: str, *, force: bool) -> Call[Unloaded]:
    message = pb.UnloadAdapterRequest(tenant=tenant, adapter=adapter, force=force)
    return Call("UnloadAdapter", message, to_unloaded)


def _page(token: str) -> Call[Page[LoadedVersion]]:
    message = pb.ListLoadedAdaptersRequest(page_size=PAGE, page_token=token)
    return Call(
        "ListLoadedAdapters",
        message,
        lambda answer: Page(tuple(map(to_loaded, answer.loaded)), answer.next_page_token),
    )


def _pool() -> Call[PoolUse]:
    return Call("GetPoolStatus", pb.GetPoolStatusRequest(), lambda answer: to_pool(answer.pool))


class Operator:
    """Blocking; safe to share between threads. Every call raises NodeError."""

    def __init__(self, address: str = DEFAULT_ADMIN_ADDRESS, *, access: Access = NOBODY) -> None:
        """Connects on the first call. Raises BadConfiguration for what `access` cannot be."""
        self._channel = open_channel(address, access)
        self._stub = adapters_pb2_grpc.AdapterServiceStub(self._channel)

    def preload(
        self,
        adapter: str,
        *,
        tenant: str = "",
        min_generation: int = 0,
        timeout: float = ORDER_SECONDS,
    ) -> LoadedVersion:
        """Load what the reference means, ahead of the requests for it."""
        return send(self._stub, _preload(adapter, tenant, min_generation), timeout)

    def pin(
        self, adapter: str, *, tenant: str = "", timeout: float = ORDER_SECONDS
    ) -> LoadedVersion:
        """Load it and keep it on the device; a bare name from version to version."""
        return send(self._stub, _pin(adapter, tenant), timeout)

    def unpin(
        self, adapter: str, *, tenant: str = "", timeout: float = LOOK_SECONDS
    ) -> LoadedVersion:
        """End the pin of this very reference."""
        return send(self._stub, _unpin(adapter, tenant), timeout)

    def unload(
        self,
        adapter: str,
        *,
        tenant: str = "",
        force: bool = False,
        timeout: float = ORDER_SECONDS,
    ) -> Unloaded:
        """Take it off the device once its requests have ended, or end them with `force`."""
        return send(self._stub, _unload(adapter, tenant, force=force), timeout)

    def loaded(self, *, timeout: float = LOOK_SECONDS) -> Iterator[LoadedVersion]:
        """Every version on the node; each page is given `timeout` seconds."""
        return send_pages(self._stub, _page, timeout)

    def pool(self, *, timeout: float = LOOK_SECONDS) -> PoolUse:
        """How the pool and the host tier are used."""
        return send(self._stub, _pool(), timeout)

    def watch(self) -> Iterator[PoolChange]:
        """Everything first, then what changes, until the iterator is closed."""
        call = self._stub.WatchPool(pb.WatchPoolRequest())
        try:
            for message in call:
                yield to_change(message)
        except grpc.RpcError as error:
            raise to_error(error) from None
        finally:
            call.cancel()

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncOperator:
    """The same for asyncio."""

    def __init__(self, address: str = DEFAULT_ADMIN_ADDRESS, *, access: Access = NOBODY) -> None:
        """Connects on the first call; belongs to the running loop. Raises BadConfiguration."""
        self._channel = open_async_channel(address, access)
        self._stub: Any = adapters_pb2_grpc.AdapterServiceStub(self._channel)

    async def preload(
        self,
        adapter: str,
        *,
        tenant: str = "",
        min_generation: int = 0,
        timeout: float = ORDER_SECONDS,
    ) -> LoadedVersion:
        """Load what the reference means, ahead of the requests for it."""
        return await send_async(self._stub, _preload(adapter, tenant, min_generation), timeout)

    async def pin(
        self, adapter: str, *, tenant: str = "", timeout: float = ORDER_SECONDS
    ) -> LoadedVersion:
        """Load it and keep it on the device; a bare name from version to version."""
        return await send_async(self._stub, _pin(adapter, tenant), timeout)

    async def unpin(
        self, adapter: str, *, tenant: str = "", timeout: float = LOOK_SECONDS
    ) -> LoadedVersion:
        """End the pin of this very reference."""
        return await send_async(self._stub, _unpin(adapter, tenant), timeout)

    async def unload(
        self,
        adapter: str,
        *,
        tenant: str = "",
        force: bool = False,
        timeout: float = ORDER_SECONDS,
    ) -> Unloaded:
        """Take it off the device once its requests have ended, or end them with `force`."""
        return await send_async(self._stub, _unload(adapter, tenant, force=force), timeout)

    def loaded(self, *, timeout: float = LOOK_SECONDS) -> AsyncIterator[LoadedVersion]:
        """Every version on the node; each page is given `timeout` seconds."""
        return send_pages_async(self._stub, _page, timeout)

    async def pool(self, *, timeout: float = LOOK_SECONDS) -> PoolUse:
        """How the pool and the host tier are used."""
        return await send_async(self._stub, _pool(), timeout)

    async def watch(self) -> AsyncIterator[PoolChange]:
        """Everything first, then what changes, until the iterator is closed."""
        call = self._stub.WatchPool(pb.WatchPoolRequest())
        try:
            async for message in call:
                yield to_change(message)
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

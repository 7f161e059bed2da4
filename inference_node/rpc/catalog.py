"""`lorapool.v1.CatalogService`: what the store has, told from its own answers alone.

Every call reads with a reader of its own: it fills no cache of the node and is told nothing by one,
so its time says nothing about what others have asked for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from adapter_store.errors import StoreError
from adapter_store.layout import AdapterRef
from adapter_store.reader import AdaptersPage, Reader
from inference_node.adapters.outcomes import STORE_RETRY_SECONDS, as_node_error
from inference_node.errors import DeadlineExpired, QueueFull, StoreDown
from inference_node.pb.lorapool.v1 import catalog_pb2 as pb
from inference_node.pb.lorapool.v1 import catalog_pb2_grpc
from inference_node.rpc import convert, published
from inference_node.rpc.auth import caller, grant
from inference_node.rpc.scopes import Scope
from inference_node.rpc.status import Answering

MAX_SECONDS = 30.0
"""Longest time for one call, whatever its deadline."""
THREADS = 4
MAX_READS = 64
"""Reads in progress: who asks for more is told to come back."""

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class CatalogServicer(catalog_pb2_grpc.CatalogServiceServicer):
    """Reads on threads of its own."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._open_reader = open_reader
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="catalog")
        self._places = threading.BoundedSemaphore(MAX_READS)

    async def GetAdapter(
        self, request: pb.GetAdapterRequest, context: Context
    ) -> pb.GetAdapterResponse:
        async with Answering(context):
            ref = convert.to_name(convert.to_tenant(request.tenant), request.adapter)

            def read(reader: Reader, seen: AdapterRef) -> pb.GetAdapterResponse:
                return published.adapter(reader.current(seen.tenant, seen.adapter))

            return await self._about(context, ref, read)

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        async with Answering(context):
            tenant = convert.to_tenant(request.tenant)
            size = convert.to_page_size(request.page_size)
            token = convert.from_page_token(request.page_token)

            scope = caller().scope
            # A tenant that is not to be seen lists like one that has nothing.
            owner = tenant if scope.covers(tenant) else grant(tenant, "").adapter

            def read(reader: Reader) -> AdaptersPage:
                if scope.covers_all(owner):
                    return reader.adapters_page(owner, limit=size, token=token or None)
                return _visible(reader, owner, scope, size=size, after=token)

            page = await self._reading(context, read, f"of tenant {tenant}")
            return pb.ListAdaptersResponse(
                adapters=page.names, next_page_token=published.page_token(page.next_token or "")
            )

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        async with Answering(context):
            ref = convert.to_name(convert.to_tenant(request.tenant), request.adapter)
            size = convert.to_page_size(request.page_size)
            after = convert.to_place(request.page_token)

            def read(reader: Reader, seen: AdapterRef) -> pb.ListVersionsResponse:
                record = reader.current(seen.tenant, seen.adapter)
                return published.versions(record, after=after, size=size)

            return await self._about(context, ref, read)

    async def ResolveAdapter(
        self, request: pb.ResolveAdapterRequest, context: Context
    ) -> pb.ResolveAdapterResponse:
        async with Answering(context):
            ref = convert.to_ref(convert.to_tenant(request.tenant), request.adapter)
            affinity = convert.to_affinity_key(request.affinity_key)
            generation = convert.to_generation(request.min_generation)
            # What a reference pins is the same in every generation.
            least = 0 if ref.pinned else generation

            def read(reader: Reader, seen: AdapterRef) -> pb.ResolveAdapterResponse:
                return published.resolved(
                    reader.resolve(seen, affinity=affinity, min_generation=least)
                )

            return await self._about(context, ref, read)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _about(
        self, context: Context, ref: AdapterRef, read: Callable[[Reader, AdapterRef], T]
    ) -> T:
        """What `read` finds of one adapter, by the name under which the caller may ask for it."""
        granted = grant(ref.tenant, str(ref))
        seen = convert.to_ref(granted.tenant, granted.adapter)
        with granted.in_words_of_the_question():
            return await self._reading(context, lambda reader: read(reader, seen), str(seen))

    async def _reading(self, context: Context, read: Callable[[Reader], T], what: str) -> T:
        """Raises QueueFull, DeadlineExpired, and what `read` raises as a node says it."""
        if not self._places.acquire(blocking=False):
            raise QueueFull(f"{MAX_READS} calls read the catalog", retry_after=1.0)
        remaining = context.time_remaining()
        seconds = MAX_SECONDS if remaining is None else min(remaining, MAX_SECONDS)
        work = self._threads.submit(lambda: read(self._open_reader()))
        # A place is free when the thread is, which may be after the caller has left.
        work.add_done_callback(self._leave)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            raise DeadlineExpired("the store did not answer by the deadline") from None
        except StoreError as error:
            translated = as_node_error(error, what)
            if isinstance(translated, StoreDown):
                translated = StoreDown("the store does not answer", retry_after=STORE_RETRY_SECONDS)
            raise translated from error

    def _leave(self, work: Future[Any]) -> None:
        self._places.release()


def _visible(reader: Reader, tenant: str, scope: Scope, *, size: int, after: str) -> AdaptersPage:
    """A page of the names in `scope` after `after`; the token too says nothing of others."""
    names = sorted(
        name for name in reader.adapters(tenant) if scope.covers(tenant, name) and name > after
    )
    return AdaptersPage(tuple(names[:size]), names[size - 1] if names[size:] else None)

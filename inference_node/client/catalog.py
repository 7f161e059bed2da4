"""What is published, as a node reads it from the store: for threads and for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

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
from inference_node.pb.lorapool.v1 import catalog_pb2 as pb
from inference_node.pb.lorapool.v1 import catalog_pb2_grpc

_KIND = "RECORD_KIND_"


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """Published content."""

    label: str
    digest: str
    base_fingerprint: str
    bytes: int
    rank: int


@dataclass(frozen=True, slots=True)
class SplitShare:
    """One arm of a canary: its parts of the sum of all weights."""

    version: PublishedVersion
    weight: int


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """What an adapter serves."""

    tenant: str
    adapter: str
    generation: int
    kind: str
    """What the newest entry of its log did: `publish`, `rollback`, `stage`, ..."""
    active: PublishedVersion | None
    """What the bare name means; None after a deletion and before a first activation."""
    staged: PublishedVersion | None
    split: tuple[SplitShare, ...]
    committed_at: str
    """By the publisher's clock, RFC 3339."""


@dataclass(frozen=True, slots=True)
class VersionLabel:
    """A label in an adapter's log."""

    label: str
    digest: str
    generation: int


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a reference means now."""

    tenant: str
    adapter: str
    generation: int
    version: PublishedVersion


class Catalog:
    """`Client.catalog`; every call raises NodeError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = catalog_pb2_grpc.CatalogServiceStub(channel)

    def get_adapter(
        self, adapter: str, *, tenant: str = "", timeout: float = LOOK_SECONDS
    ) -> CatalogEntry:
        """What it serves now."""
        return send(self._stub, _get(adapter, tenant), timeout)

    def list_adapters(self, *, tenant: str = "", timeout: float = LOOK_SECONDS) -> Iterator[str]:
        """Every name of a tenant; each page is given `timeout` seconds."""
        return send_pages(self._stub, partial(_adapters, tenant), timeout)

    def list_versions(
        self, adapter: str, *, tenant: str = "", timeout: float = LOOK_SECONDS
    ) -> Iterator[VersionLabel]:
        """Every label of an adapter, newest first; each page is given `timeout` seconds."""
        return send_pages(self._stub, partial(_versions, adapter, tenant), timeout)

    def resolve(
        self,
        adapter: str,
        *,
        tenant: str = "",
        affinity_key: str = "",
        min_generation: int = 0,
        timeout: float = LOOK_SECONDS,
    ) -> Resolution:
        """What a reference means, as a node that knows everything would answer it."""
        return send(self._stub, _resolve(adapter, tenant, affinity_key, min_generation), timeout)


class AsyncCatalog:
    """The same for asyncio: `AsyncClient.catalog`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = catalog_pb2_grpc.CatalogServiceStub(channel)

    async def get_adapter(
        self, adapter: str, *, tenant: str = "", timeout: float = LOOK_SECONDS
    ) -> CatalogEntry:
        """What it serves now."""
        return await send_async(self._stub, _get(adapter, tenant), timeout)

    def list_adapters(
        self, *, tenant: str = "", timeout: float = LOOK_SECONDS
    ) -> AsyncIterator[str]:
        """Every name of a tenant; each page is given `timeout` seconds."""
        return send_pages_async(self._stub, partial(_adapters, tenant), timeout)

    def list_versions(
        self, adapter: str, *, tenant: str = "", timeout: float = LOOK_SECONDS
    ) -> AsyncIterator[VersionLabel]:
        """Every label of an adapter, newest first; each page is given `timeout` seconds."""
        return send_pages_async(self._stub, partial(_versions, adapter, tenant), timeout)

    async def resolve(
        self,
        adapter: str,
        *,
        tenant: str = "",
        affinity_key: str = "",
        min_generation: int = 0,
        timeout: float = LOOK_SECONDS,
    ) -> Resolution:
        """What a reference means, as a node that knows everything would answer it."""
        call = _resolve(adapter, tenant, affinity_key, min_generation)
        return await send_async(self._stub, call, timeout)


def _get(adapter: str, tenant: str) -> Call[CatalogEntry]:
    return Call("GetAdapter", pb.GetAdapterRequest(tenant=tenant, adapter=adapter), _entry)


def _adapters(tenant: str, token: str) -> Call[Page[str]]:
    message = pb.ListAdaptersRequest(tenant=tenant, page_size=PAGE, page_token=token)
    return Call("ListAdapters", message, lambda a: Page(tuple(a.adapters), a.next_page_token))


def _versions(adapter: str, tenant: str, token: str) -> Call[Page[VersionLabel]]:
    message = pb.ListVersionsRequest(
        tenant=tenant, adapter=adapter, page_size=PAGE, page_token=token
    )

    def read(answer: pb.ListVersionsResponse) -> Page[VersionLabel]:
        found = tuple(VersionLabel(v.label, v.digest, v.generation) for v in answer.versions)
        return Page(found, answer.next_page_token)

    return Call("ListVersions", message, read)


def _resolve(adapter: str, tenant: str, key: str, generation: int) -> Call[Resolution]:
    message = pb.ResolveAdapterRequest(
        tenant=tenant, adapter=adapter, affinity_key=key, min_generation=generation
    )
    return Call(
        "ResolveAdapter",
        message,
        lambda a: Resolution(a.tenant, a.adapter, a.generation, _version(a.version)),
    )


def _entry(message: pb.GetAdapterResponse) -> CatalogEntry:
    return CatalogEntry(
        tenant=message.tenant,
        adapter=message.adapter,
        generation=message.generation,
        kind=pb.RecordKind.Name(message.kind).removeprefix(_KIND).lower(),
        active=_version(message.active) if message.HasField("active") else None,
        staged=_version(message.staged) if message.HasField("staged") else None,
        split=tuple(SplitShare(_version(arm.version), arm.weight) for arm in message.split),
        committed_at=message.committed_at,
    )


def _version(message: pb.Version) -> PublishedVersion:
    return PublishedVersion(
        message.label, message.digest, message.base_fingerprint, message.bytes, message.rank
    )

"""What an operator asks of the adapters on a node, and what is answered. No torch, no protobuf.

`ref` is what a request says: `name`, `name@label` or `name@sha256:<digest>`. Every method may be
called on any thread, does not block, and raises Draining once the node stops. Every future that it
returns ends with a result or a NodeError, on the engine thread: its callbacks must not block.
Cancelling one withdraws the order as far as it has not been carried out.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from adapter_store.fleet import Holding
from inference_node.request import Served

ORDER_SECONDS = 60.0


class Tier(Enum):
    """The nearest place that has a version's weights."""

    DEVICE = "device"
    HOST = "host"
    STORE = "store"
    """On neither yet: they are being fetched."""


class VersionState(Enum):
    """How far a version has come."""

    FETCHING = "fetching"
    """From the store or the disk cache; its checks are part of it."""
    VERIFIED = "verified"
    """Checked and laid out on the host: it waits for pages, or for somebody to ask for it."""
    STAGED = "staged"
    """Pages are taken and being filled; no request reads them."""
    RESIDENT = "resident"
    DRAINING = "draining"
    """No new request gets it; its pages are free once those that hold it end."""


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """One version as it stands on this node."""

    served: Served
    """Which one it is, by the reference that it was last loaded for."""
    names: tuple[Served, ...]
    """Adapters whose bare name means this version here, each with its generation and label."""
    tier: Tier
    state: VersionState
    pages: tuple[int, ...]
    """Taken in each module group, in the order of PoolUse.groups; nothing off the device."""
    bytes: int
    """On the device, or on the host when it is only there; 0 while it is fetched."""
    leases: int
    """Requests that hold it."""
    pinned: bool
    """By itself or by a name that it serves: it is not evicted to make room."""
    idle_seconds: float
    """Since a request last held it, or since it came; 0 while one does or while it is loading."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A version has left the device; its host copy may stay.

    Where another adapter serves the very same content the pages stay for it.
    """

    served: Served
    failed_requests: int
    """Requests of this adapter that were ended for it; none unless it was forced."""


@dataclass(frozen=True, slots=True)
class GroupUse:
    """Pages of one module group: total = free + idle + held + pinned + condemned."""

    name: str
    total: int
    free: int
    idle: int
    """Of versions that can be evicted at once."""
    held: int
    """Of versions that requests hold, or that are being filled or drained."""
    pinned: int
    condemned: int
    """Could not be wiped after a failed copy: out of use until the node restarts."""
    headroom: int
    """Of those free and idle: left to the next versions of names that are served."""
    page_bytes: int


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The adapter pool and the host tier at one moment, between two steps."""

    groups: tuple[GroupUse, ...]
    resident: int
    """Versions that may be leased."""
    leases: int
    fetching: int
    """Versions on their way to the host."""
    waiting: int
    """Versions on the host that somebody waits for and that have no pages yet."""
    swaps_waiting: int
    """Of those: next versions of names that are served by their last one meanwhile."""
    host_versions: int
    host_bytes: int
    host_budget: int
    stale_seconds: float = 0.0
    """The longest that a served name has gone without the store's word that it means this."""


class ResidencyControl(Protocol):
    """Orders about what is on the device; `inference_node.engine.loop.EngineLoop` takes them."""

    def preload(
        self, tenant: str, ref: str, *, min_generation: int = 0, timeout: float = ORDER_SECONDS
    ) -> Future[LoadedVersion]:
        """Load what `ref` means now; answered once it is resident, as a request would be.

        It waits for pages, and takes none from a running request. Ends with InvalidRequest,
        AdapterNotFound, StaleNode, StoreDown, AdapterIncompatible, AdapterCorrupt,
        AdapterUntrusted or EngineFailure; after `timeout` seconds with PoolFull when only pages
        are missing, else with DeadlineExpired.
        """
        ...

    def pin(
        self, tenant: str, ref: str, *, timeout: float = ORDER_SECONDS
    ) -> Future[LoadedVersion]:
        """Load what `ref` means, and keep it until `unpin`, `unload` or the end of the process.

        A bare name stays pinned from version to version while it serves any; a version stays
        pinned whatever its name serves. Pinning twice is one pin. Ends as `preload`, or with
        PinRefused when the largest version and the headroom would not fit beside what is pinned.
        """
        ...

    def unpin(self, tenant: str, ref: str) -> Future[LoadedVersion]:
        """End the pin of this very reference; fine without one. It may still be pinned by another.

        Ends with InvalidRequest, or AdapterNotLoaded when the reference means nothing resident.
        """
        ...

    def unload(
        self, tenant: str, ref: str, *, force: bool = False, timeout: float = ORDER_SECONDS
    ) -> Future[Unloaded]:
        """Take a version off the device, whatever pins it; the next request loads it again.

        Running requests finish first; with `force` they fail with AdapterUnloaded. Answered once
        its pages are free. Ends with InvalidRequest, AdapterNotLoaded, or DeadlineExpired when
        requests still held it after `timeout` seconds: it goes on draining.
        """
        ...

    def list_loaded(self) -> Future[tuple[LoadedVersion, ...]]:
        """Every version on the device, on the host, or on the way; by tenant, adapter, digest."""
        ...

    def pool_use(self) -> Future[PoolUse]:
        """Pages by module group, and what waits for them."""
        ...

    def holdings(self) -> Future[tuple[Holding, ...]]:
        """What the node has of every adapter, by name; cheaper than `list_loaded`."""
        ...

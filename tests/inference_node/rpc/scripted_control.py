"""Takes an operator's orders and lets the test end them."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from adapter_store.fleet import Holding
from inference_node.request import Served
from inference_node.residency import (
    ORDER_SECONDS,
    GroupUse,
    LoadedVersion,
    PoolUse,
    Tier,
    Unloaded,
    VersionState,
)

POOL = PoolUse(
    groups=(GroupUse("q+k+v", 8, 5, 1, 2, 0, 0, 1, 4096),),
    resident=1,
    leases=0,
    fetching=0,
    waiting=0,
    swaps_waiting=0,
    host_versions=2,
    host_bytes=2048,
    host_budget=4096,
    stale_seconds=1.5,
)


def version(
    name: str, *, tenant: str = "default", digest: str = "", **changes: Any
) -> LoadedVersion:
    """A resident version that its name serves."""
    served = Served(tenant, name, "v1", 3, digest or f"{hash(name) & 0xFF:02x}" * 32)
    fields: dict[str, Any] = {
        "names": (served,),
        "tier": Tier.DEVICE,
        "state": VersionState.RESIDENT,
        "pages": (2,),
        "bytes": 8192,
        "leases": 0,
        "pinned": False,
        "idle_seconds": 1.5,
    }
    return LoadedVersion(served=served, **{**fields, **changes})


class ScriptedControl:
    """Implements `inference_node.residency.ResidencyControl`."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, str, str]] = []
        self.options: list[dict[str, object]] = []
        self.loaded: tuple[LoadedVersion, ...] = ()
        self.pool = POOL
        self.held: tuple[Holding, ...] = ()
        self.fails: Exception | None = None
        """What the next orders end with."""
        self.pending: list[Future[Any]] = []
        """Orders that nobody has ended, where `answers` is off."""
        self.answers = True
        self.looks = 0

    def preload(
        self, tenant: str, ref: str, *, min_generation: int = 0, timeout: float = ORDER_SECONDS
    ) -> Future[LoadedVersion]:
        return self._order(
            "preload", tenant, ref, version(ref), min_generation=min_generation, timeout=timeout
        )

    def pin(
        self, tenant: str, ref: str, *, timeout: float = ORDER_SECONDS
    ) -> Future[LoadedVersion]:
        return self._order("pin", tenant, ref, version(ref, pinned=True), timeout=timeout)

    def unpin(self, tenant: str, ref: str) -> Future[LoadedVersion]:
        return self._order("unpin", tenant, ref, version(ref))

    def unload(
        self, tenant: str, ref: str, *, force: bool = False, timeout: float = ORDER_SECONDS
    ) -> Future[Unloaded]:
        done = Unloaded(version(ref).served, 2 if force else 0)
        return self._order("unload", tenant, ref, done, force=force, timeout=timeout)

    def list_loaded(self) -> Future[tuple[LoadedVersion, ...]]:
        self.looks += 1
        return self._ended(self.loaded)

    def pool_use(self) -> Future[PoolUse]:
        return self._ended(self.pool)

    def holdings(self) -> Future[tuple[Holding, ...]]:
        return self._ended(self.held)

    def _order(
        self, what: str, tenant: str, ref: str, result: Any, **options: object
    ) -> Future[Any]:
        self.orders.append((what, tenant, ref))
        self.options.append(options)
        if self.answers:
            return self._ended(result)
        self.pending.append(Future())
        return self.pending[-1]

    def _ended(self, result: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.fails is not None:
            future.set_exception(self.fails)
        else:
            future.set_result(result)
        return future

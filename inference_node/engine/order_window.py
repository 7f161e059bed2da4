"""Takes an operator's orders on any thread, for the engine thread to carry out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from adapter_store.fleet import Holding
from inference_node.engine.inbox import Inbox
from inference_node.engine.intake import Intake
from inference_node.engine.orders import (
    AnyOrder,
    ListLoaded,
    Load,
    Read,
    ReadHoldings,
    ReadPool,
    Unload,
    Unpin,
)
from inference_node.readings import Readings
from inference_node.residency import ORDER_SECONDS, LoadedVersion, PoolUse, Unloaded

Posted = TypeVar("Posted", bound=AnyOrder)


class OrderWindow:
    """`inference_node.residency.ResidencyControl`, which says what each order means, and
    `inference_node.readings.Readable`."""

    def __init__(self, intake: Intake, inbox: Inbox, *, clock: Callable[[], float]) -> None:
        self._door = intake
        self._letters = inbox
        self._now = clock

    def preload(
        self, tenant: str, ref: str, *, min_generation: int = 0, timeout: float = ORDER_SECONDS
    ) -> Future[LoadedVersion]:
        end = self._now() + timeout
        order = Load(tenant=tenant, ref=ref, min_generation=min_generation, deadline=end)
        return self._post(order).answer

    def pin(
        self, tenant: str, ref: str, *, timeout: float = ORDER_SECONDS
    ) -> Future[LoadedVersion]:
        end = self._now() + timeout
        return self._post(Load(tenant=tenant, ref=ref, pin=True, deadline=end)).answer

    def unpin(self, tenant: str, ref: str) -> Future[LoadedVersion]:
        return self._post(Unpin(tenant=tenant, ref=ref)).answer

    def unload(
        self, tenant: str, ref: str, *, force: bool = False, timeout: float = ORDER_SECONDS
    ) -> Future[Unloaded]:
        end = self._now() + timeout
        return self._post(Unload(tenant=tenant, ref=ref, force=force, deadline=end)).answer

    def list_loaded(self) -> Future[tuple[LoadedVersion, ...]]:
        return self._post(ListLoaded()).answer

    def pool_use(self) -> Future[PoolUse]:
        return self._post(ReadPool()).answer

    def holdings(self) -> Future[tuple[Holding, ...]]:
        return self._post(ReadHoldings()).answer

    def read(self, *, listed: int) -> Future[Readings]:
        return self._post(Read(listed=listed)).answer

    def _post(self, order: Posted) -> Posted:
        with self._door.opened():
            self._letters.post(order)
        return order

"""An operator's orders on their way to the engine thread; `residency.py` says what each means."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from adapter_store.fleet import Holding
from inference_node.errors import NodeError
from inference_node.readings import Readings
from inference_node.residency import LoadedVersion, PoolUse, Unloaded

T = TypeVar("T")


@dataclass(slots=True, eq=False, kw_only=True)
class Order(Generic[T]):
    """Something an operator asked for."""

    answer: Future[T] = field(default_factory=Future)
    deadline: float | None = None
    """On the engine's clock."""

    def begin(self) -> bool:
        """Whether it is still wanted: from here on it cannot be cancelled."""
        if self.answer.running():
            return True
        return not self.answer.done() and self.answer.set_running_or_notify_cancel()

    def finish(self, result: T) -> None:
        if self.begin():
            self.answer.set_result(result)

    def fail(self, error: NodeError) -> None:
        if self.begin():
            self.answer.set_exception(error)


@dataclass(slots=True, eq=False, kw_only=True)
class Load(Order[LoadedVersion]):
    """Preload, or with `pin` pin."""

    tenant: str
    ref: str
    min_generation: int = 0
    pin: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Unpin(Order[LoadedVersion]):
    tenant: str
    ref: str


@dataclass(slots=True, eq=False, kw_only=True)
class Unload(Order[Unloaded]):
    tenant: str
    ref: str
    force: bool


@dataclass(slots=True, eq=False, kw_only=True)
class ListLoaded(Order[tuple[LoadedVersion, ...]]):
    pass


@dataclass(slots=True, eq=False, kw_only=True)
class ReadPool(Order[PoolUse]):
    pass


@dataclass(slots=True, eq=False, kw_only=True)
class ReadHoldings(Order[tuple[Holding, ...]]):
    pass


@dataclass(slots=True, eq=False, kw_only=True)
class Read(Order[Readings]):
    listed: int


AnyOrder = Load | Unpin | Unload | ListLoaded | ReadPool | ReadHoldings | Read

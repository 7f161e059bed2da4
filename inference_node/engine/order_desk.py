"""Carries out an operator's orders on the engine thread, and answers each once.

An order that waits, for a load or for running requests to end, has a deadline; `tick` is called
between any two steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass

from adapter_store.errors import InvalidName
from adapter_store.layout import AdapterRef, parse_ref
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Residency, Resident, VersionKey
from inference_node.engine.admission import Admission
from inference_node.engine.census import Census
from inference_node.engine.claims import Claim
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
from inference_node.engine.readout import Readout
from inference_node.engine.sequence import Sequence
from inference_node.errors import (
    AdapterNotFound,
    AdapterNotLoaded,
    AdapterUnloaded,
    DeadlineExpired,
    InvalidRequest,
    NodeError,
    PinRefused,
)
from inference_node.request import Served
from inference_node.residency import LoadedVersion, Unloaded


@dataclass(frozen=True, slots=True)
class _Draining:
    """A version that an order has taken out of service."""

    order: Unload
    held: Resident
    served: Served
    failed: int
    shared: bool
    """Another adapter of equal content keeps the pages: this one alone is out of service."""

    def holders(self, requests: Collection[Sequence]) -> int:
        """Requests of this adapter that still hold the version."""
        return sum(_holds(request, self.held, self.served.adapter) for request in requests)


class OrderDesk:
    """The orders that have not been answered."""

    def __init__(
        self,
        admission: Admission,
        slots: SlotTable,
        census: Census,
        readout: Readout,
        *,
        requests: Callable[[], Collection[Sequence]],
        fail: Callable[[Sequence, NodeError], None],
        clock: Callable[[], float],
    ) -> None:
        """`requests` are all that have not ended; `fail` ends one of them."""
        self._admission = admission
        self._slots = slots
        self._census = census
        self._readout = readout
        self._requests = requests
        self._fail = fail
        self._clock = clock
        self._loading: dict[Load, Claim] = {}
        self._draining: list[_Draining] = []
        self._numbers = itertools.count(1)

    def take(self, order: AnyOrder) -> None:
        """Carry it out, as far as that goes at once."""
        try:
            match order:
                case Load():
                    self._load(order)
                case Unpin():
                    order.finish(self._unpin(order))
                case Unload():
                    self._unload(order)
                case ListLoaded():
                    order.finish(self._census.loaded())
                case ReadPool():
                    order.finish(self._census.pool())
                case ReadHoldings():
                    order.finish(self._census.holdings())
                case Read(listed=listed):
                    order.finish(self._readout.read(listed=listed))
        except NodeError as error:
            order.fail(error)

    def soonest(self) -> float | None:
        """When the next one is out of time."""
        return min((o.deadline for o in self._waiting() if o.deadline is not None), default=None)

    def tick(self) -> None:
        """Answer those that are through, and those whose time is up."""
        now = self._clock()
        for draining in list(self._draining):
            order, held = draining.order, draining.held
            left = draining.holders(self._requests())
            if held.state is Residency.FREED or (draining.shared and not left):
                self._draining.remove(draining)
                order.finish(Unloaded(draining.served, draining.failed))
            elif order.deadline is not None and order.deadline <= now:
                self._draining.remove(draining)
                order.fail(
                    DeadlineExpired(
                        f"{left} requests still hold {draining.served.adapter}; no new one "
                        "gets it, and its pages are free once they end",
                        hint="unload it by force to end them",
                    )
                )
        for load, claim in list(self._loading.items()):
            if load.answer.cancelled():
                self._drop(load)
            elif load.deadline is not None and load.deadline <= now:
                waited_for = self._admission.withdraw_claim(claim)
                del self._loading[load]
                late = DeadlineExpired(f"{load.ref} was still loading when the time was up")
                load.fail(waited_for or late)

    def end(self, error: NodeError) -> None:
        """Answer whatever is left."""
        for load in list(self._loading):
            self._drop(load)
            load.fail(error)
        for draining in self._draining:
            draining.order.fail(error)
        self._draining.clear()

    def check_integrity(self) -> None:
        """Raises AssertionError when an order could go without an answer."""
        for order in self._waiting():
            assert not order.answer.done() or order.answer.cancelled(), "answered, and kept"
            assert order.deadline is not None, "it may wait for ever"
        for draining in self._draining:
            gone = draining.held.state in (Residency.DRAINING, Residency.FREED)
            assert gone or draining.shared, "it is in service"
        for claim in self._loading.values():
            self._admission.check_claim(claim)

    def _load(self, order: Load) -> None:
        ref = _parse(order.tenant, order.ref)
        bound: list[Entry] = []

        def grant() -> None:
            self._loading.pop(order, None)
            entry = bound[-1]
            held = self._slots.resident(entry.key)
            assert held is not None
            held.know(entry)
            try:
                if order.pin and order.begin():
                    held = self._pin(ref, held)
                order.finish(self._census.resident(held))
            except NodeError as error:
                order.fail(error)

        def refuse(error: NodeError) -> None:
            self._loading.pop(order, None)
            order.fail(error)

        claim = Claim(
            f"order {next(self._numbers)}",
            ref,
            order.min_generation,
            bound.append,
            grant,
            refuse,
            patient=True,
        )
        self._loading[order] = claim
        self._admission.claim(claim)

    def _pin(self, ref: AdapterRef, held: Resident) -> Resident:
        """Pin what is resident; which version that is, since a name may have gone on."""
        if not ref.pinned:
            served = self._slots.serving(ref.tenant, ref.adapter)
            now_served = None if served is None else self._slots.resident(served.key)
            if now_served is None:
                raise AdapterNotFound(f"{ref} serves nothing any more")
            held = now_served
        pinned = (
            self._slots.is_pinned_itself(held.key)
            if ref.pinned
            else self._slots.is_pinned_name(ref.tenant, ref.adapter)
        )
        if not pinned and not self._slots.can_pin(held.key):
            raise PinRefused(
                f"with {ref} pinned too, the largest version and the headroom would not fit",
                hint="unpin another, or raise LORAPOOL_POOL_MB",
            )
        if ref.pinned:
            self._slots.pin(held.key)
        else:
            self._slots.pin_name(ref.tenant, ref.adapter)
        return held

    def _unpin(self, order: Unpin) -> LoadedVersion:
        ref = _parse(order.tenant, order.ref)
        held = self._resident(ref)
        if held is None:
            raise _not_loaded(ref)
        if ref.pinned:
            self._slots.unpin(held.key)
        else:
            self._slots.unpin_name(ref.tenant, ref.adapter)
        return self._census.resident(held)

    def _unload(self, order: Unload) -> None:
        ref = _parse(order.tenant, order.ref)
        held = self._resident(ref) or self._leaving(ref)
        if held is None:
            raise _not_loaded(ref)
        if not order.begin():
            return
        served = self._served_as(ref, held)
        shared = self._admission.unload(held, ref.adapter)
        holders = [s for s in self._requests() if order.force and _holds(s, held, served.adapter)]
        for sequence in holders:
            self._fail(
                sequence,
                AdapterUnloaded(
                    f"{ref} was unloaded by an operator",
                    hint="ask again: it is loaded for the next request",
                    retry_after=1.0,
                ),
            )
        self._draining.append(_Draining(order, held, served, len(holders), shared))
        self.tick()

    def _resident(self, ref: AdapterRef) -> Resident | None:
        """The version that a reference means here, without asking the store."""
        if not ref.pinned:
            served = self._slots.serving(ref.tenant, ref.adapter)
            return None if served is None else self._slots.resident(served.key)
        if ref.vdig:
            held = self._slots.resident(VersionKey(ref.tenant, ref.vdig))
            return held if held is not None and _is_known(held, ref) else None
        return self._known(ref, Residency.RESIDENT)

    def _leaving(self, ref: AdapterRef) -> Resident | None:
        return self._known(ref, Residency.DRAINING) if ref.pinned else None

    def _served_as(self, ref: AdapterRef, held: Resident) -> Served:
        """The version by the adapter that was named: another may have the same content."""
        own = [entry.served for entry in held.known_as.values() if entry.adapter == ref.adapter]
        return own[-1] if own else self._census.resident(held).served

    def _known(self, ref: AdapterRef, state: Residency) -> Resident | None:
        """Of the versions known by this reference the newest."""
        known = [
            held for held in self._slots.holders() if held.state is state and _is_known(held, ref)
        ]
        return max(known, key=lambda held: held.stamp, default=None)

    def _waiting(self) -> list[Load | Unload]:
        return [*self._loading, *(draining.order for draining in self._draining)]

    def _drop(self, order: Load) -> None:
        self._admission.withdraw_claim(self._loading.pop(order))


def _parse(tenant: str, ref: str) -> AdapterRef:
    try:
        return parse_ref(ref, tenant=tenant)
    except InvalidName as error:
        raise InvalidRequest("adapter", str(error), hint=error.hint) from error


def _is_known(held: Resident, ref: AdapterRef) -> bool:
    """Whether the version was asked for, or served, as what `ref` pins."""
    return held.key.tenant == ref.tenant and any(
        entry.adapter == ref.adapter
        and (entry.label == ref.label if ref.label else entry.key.vdig == ref.vdig)
        for entry in held.known_as.values()
    )


def _holds(request: Sequence, held: Resident, adapter: str) -> bool:
    entry = request.entry
    return request.lease is held and entry is not None and entry.adapter == adapter


def _not_loaded(ref: AdapterRef) -> AdapterNotLoaded:
    return AdapterNotLoaded(
        f"{ref} means nothing that is on the device of this node",
        hint="what is loaded, and as what, is listed by ListLoadedAdapters",
        details={"adapter": str(ref)},
    )

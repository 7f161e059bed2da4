"""Versions on their way to the device: fetched, waiting for pages, being filled; and who waits.

For the engine thread. A version is on its way once, however many wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from inference_node.adapters.loader import Filled, Loader, Prepared, Target, Unfilled, Unprepared
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.claims import Claim
from inference_node.engine.names import Name, Names
from inference_node.errors import NodeError, PoolFull

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Arrival:
    """A version on its way, and who waits for it."""

    entry: Entry
    """What it was first asked for as."""
    claims: list[Claim] = field(default_factory=list)
    names: list[Entry] = field(default_factory=list)
    """Entries to serve under their bare name once the version is resident."""
    host: HostAdapter | None = None
    """Set while it is ready and waits for pages."""
    ready_at: float = 0.0


class Arrivals:
    """Brings versions from the loader to pages, and tells their claims how it ended."""

    def __init__(
        self,
        slots: SlotTable,
        pool: AdapterPool,
        loader: Loader,
        names: Names,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._pool = pool
        self._loader = loader
        self._names = names
        self._clock = clock
        self._coming: dict[VersionKey, Arrival] = {}

    def claim(self, claim: Claim, target: Target) -> None:
        """Grant the claim when the version is resident: now, or once it is."""
        if self._slots.resident(target.entry.key) is not None:
            claim.grant()
        else:
            self._arrival(target).claims.append(claim)

    def bring(self, target: Target) -> None:
        """Serve `target` under its bare name: now if it is resident, else when it is."""
        entry = target.entry
        if self._slots.resident(entry.key) is not None:
            self._names.serve(entry)
        else:
            names = self._arrival(target).names
            if entry not in names:
                names.append(entry)

    def withdraw(self, claim: Claim) -> NodeError | None:
        """Let go of a claim; what to tell one that waited for pages alone."""
        for arrival in self._coming.values():
            if claim in arrival.claims:
                arrival.claims.remove(claim)
                if arrival.host is not None:
                    return PoolFull(
                        "every adapter page is leased by running requests",
                        hint="retry, or raise LORAPOOL_POOL_MB",
                        retry_after=1.0,
                    )
        return None

    def starving(self, before: float) -> list[Arrival]:
        """Versions that requests wait for, and that have been ready since `before` without pages.

        One that pins leave no room for is not among them: nobody can make way for it.
        """
        return [
            arrival
            for arrival in self._coming.values()
            if arrival.host is not None
            and arrival.ready_at <= before
            and not all(claim.patient for claim in arrival.claims)
            and self._slots.fits_beside_pins(arrival.host.pages)
        ]

    def bring_back(
        self, entry: Entry, host: HostAdapter, names: list[Entry], claims: list[Claim]
    ) -> None:
        """A version that makes way is to come again, for those who held it."""
        self._coming[entry.key] = Arrival(entry, claims, names, host, self._clock())

    def coming(self) -> Mapping[VersionKey, Arrival]:
        return self._coming

    def count(self, claim: Claim) -> int:
        """In how many places it waits."""
        return sum(arrival.claims.count(claim) for arrival in self._coming.values())

    def is_swap(self, arrival: Arrival) -> bool:
        """Whether it is the next version of a name that serves another meanwhile."""
        return any(map(self._names.replaces, arrival.names))

    def forget(self, name: Name, gen: int) -> None:
        """What is on its way to the name, up to `gen`, is not to be served under it."""
        for arrival in self._coming.values():
            arrival.names = [
                entry
                for entry in arrival.names
                if (entry.tenant, entry.adapter) != name or entry.gen > gen
            ]

    def on_event(self, event: Prepared | Unprepared | Filled | Unfilled) -> None:
        match event:
            case Prepared(key, host):
                self._loader.settled(key)
                self._on_prepared(key, host)
            case Unprepared(key, error):
                self._loader.settled(key)
                self._give_up(key, error)
            case Filled(staged):
                self._slots.activate(staged, now=self._clock())
                self._on_resident(staged.key)
            case Unfilled(staged, error):
                self._slots.abandon(staged)
                self._give_up(staged.key, error)

    def stage(self) -> None:
        """Give pages to versions that are ready: swaps, then those that requests wait for, in turn.

        A swap that does not fit holds up nobody, since newcomers leave it the headroom; it waits
        while the old version serves. A newcomer that does not fit holds up those after it, or small
        ones would starve it; but not one that pins leave no room for at all.
        """
        ready = self._drop_unwanted()
        full = False
        for arrival in sorted(ready, key=self._line):
            host, newcomer = arrival.host, not self.is_swap(arrival)
            if host is None or (newcomer and full):
                continue
            if self._slots.can_make_room(host.pages, newcomer=newcomer):
                self._fill(arrival, host)
            elif newcomer:
                full = self._slots.fits_beside_pins(host.pages)

    def _drop_unwanted(self) -> list[Arrival]:
        """Versions that are ready and still wanted, in the order in which they were asked for."""
        ready = []
        for key, arrival in list(self._coming.items()):
            if arrival.host is None:
                continue
            if arrival.claims or any(map(self._names.is_news, arrival.names)):
                ready.append(arrival)
            else:
                del self._coming[key]
        return ready

    def _line(self, arrival: Arrival) -> int:
        if self.is_swap(arrival):
            return 0
        return 2 if all(claim.patient for claim in arrival.claims) else 1

    def _fill(self, arrival: Arrival, host: HostAdapter) -> None:
        arrival.host = None
        staged = self._slots.stage(arrival.entry.key, wanted=host.pages, scale=host.scale)
        self._pool.claim(staged)
        self._names.tell_watcher()
        self._loader.fill(staged, host)

    def _arrival(self, target: Target) -> Arrival:
        key = target.entry.key
        arrival = self._coming.get(key)
        if arrival is None:
            arrival = self._coming[key] = Arrival(target.entry)
            self._loader.prepare(target)
        return arrival

    def _on_prepared(self, key: VersionKey, host: HostAdapter) -> None:
        arrival = self._coming.get(key)
        if arrival is None:
            return
        self._slots.expect(host.pages)
        arrival.host = host
        arrival.ready_at = self._clock()
        self.stage()

    def _on_resident(self, key: VersionKey) -> None:
        arrival = self._coming.pop(key)
        for entry in arrival.names:
            self._names.serve(entry)
        for claim in arrival.claims:
            claim.grant()
        self.stage()

    def _give_up(self, key: VersionKey, error: NodeError) -> None:
        """The version cannot be had: its claims are refused, names keep serving what they serve."""
        arrival = self._coming.pop(key, None)
        if arrival is None:
            return
        for entry in arrival.names:
            log.warning("%s@%s not taken into service: %s", entry.adapter, entry.label, error)
        for claim in arrival.claims:
            claim.refuse(error)

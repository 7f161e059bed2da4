"""Versions on their way to the device: fetched, waiting for pages, being filled; and who waits.

For the engine thread. A version is on its way once, however many wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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

    def starving(self, before: float) -> list[tuple[int, ...]]:
        """Pages by group of each version that has been ready, and waited for, since `before`."""
        return [
            arrival.host.pages
            for arrival in self._coming.values()
            if arrival.host is not None and arrival.claims and arrival.ready_at <= before
        ]

    def bring_back(
        self, key: VersionKey, host: HostAdapter, names: list[Entry], claims: list[Claim]
    ) -> None:
        """A version that makes way is to come again, for those who held it."""
        self._coming[key] = Arrival(claims, names, host, self._clock())

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
        """Give pages to versions that are ready, first come first served."""
        for key, arrival in list(self._coming.items()):
            host = arrival.host
            if host is None:
                continue
            if not arrival.claims and not any(map(self._names.is_news, arrival.names)):
                del self._coming[key]
                continue
            if not self._slots.can_make_room(host.pages):
                return
            arrival.host = None
            staged = self._slots.stage(key, wanted=host.pages, scale=host.scale)
            self._pool.claim(staged)
            self._names.tell_watcher()
            self._loader.fill(staged, host)

    def _arrival(self, target: Target) -> Arrival:
        key = target.entry.key
        arrival = self._coming.get(key)
        if arrival is None:
            arrival = self._coming[key] = Arrival()
            self._loader.prepare(target)
        return arrival

    def _on_prepared(self, key: VersionKey, host: HostAdapter) -> None:
        arrival = self._coming.get(key)
        if arrival is None:
            return
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

"""Versions on their way to the device: fetched, waiting for pages, being filled; and who waits.

For the engine thread. A version is on its way once, however many wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from adapter_store.layout import AdapterRef
from adapter_store.record import VersionRef
from inference_node.adapters.allowance import Allowance
from inference_node.adapters.load_meter import FROM_HOST, FROM_STORE, LoadMeter
from inference_node.adapters.loader import Loader
from inference_node.adapters.outcomes import is_permanent
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.reports import Fetched, Filled, Prepared, Target, Unfilled, Unprepared
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Residency, VersionKey
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.brought import Brought
from inference_node.engine.claims import Claim
from inference_node.engine.names import Name, Names
from inference_node.engine.setbacks import Setbacks
from inference_node.engine.successors import Successors
from inference_node.errors import NodeError, PoolFull, QuotaExceeded

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Arrival:
    """A version on its way, and who waits for it."""

    entry: Entry
    """What it was first asked for as."""
    claims: list[Claim] = field(default_factory=list)
    names: list[Entry] = field(default_factory=list)
    """Entries to serve under their bare name once the version is resident."""
    version: VersionRef | None = None
    """Where its bytes are; None once they were here before."""
    fetching: bool = True
    """On its way to the host."""
    host: HostAdapter | None = None
    """Set while it is ready and waits for pages."""
    ready_at: float = 0.0
    wanted_at: float = 0.0
    staged_at: float = 0.0
    """When it was given pages."""
    source: str = FROM_HOST
    """Where its weights came from."""


class Arrivals:
    """Brings versions from the loader to pages, and tells their claims how it ended."""

    def __init__(
        self,
        slots: SlotTable,
        pool: AdapterPool,
        loader: Loader,
        names: Names,
        allowance: Allowance,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._pool = pool
        self._loader = loader
        self._names = names
        self._allowance = allowance
        self._clock = clock
        self._coming: dict[VersionKey, Arrival] = {}
        self._setbacks = Setbacks(clock=clock, random=random)
        self._successors = Successors()
        self._brought = Brought()
        self.meter = LoadMeter()

    @property
    def loading(self) -> bool:
        """Whether workers fetch, check or copy any version now, or have yet to begin."""
        return any(arrival.host is None for arrival in self._coming.values())

    @property
    def in_work(self) -> int:
        """How many such versions there are."""
        return sum(arrival.host is None for arrival in self._coming.values())

    def refusal(self, ref: AdapterRef) -> QuotaExceeded | None:
        """Why its tenant need not ask the store what a reference means: it may load nothing now,
        and nothing was ever brought here under that name.

        So a flood of cold names costs the store nothing once the quota is spent. Nobody looks
        whether the name means what is here under another one, or nothing at all.
        """
        if (ref.tenant, ref.adapter) in self._brought:
            return None
        return self._allowance.spent(ref.tenant)

    def claim(self, claim: Claim, target: Target) -> None:
        """Grant the claim when the version is resident: now, or once it is."""
        key = target.entry.key
        if self._slots.resident(key) is not None:
            claim.grant()
        elif key in self._coming:
            self._coming[key].claims.append(claim)
        elif (setback := self._setbacks.refusal(target.entry)) is not None:
            claim.refuse(setback)
        elif not claim.patient and (refusal := self._allowance.refusal(key, target.size)):
            claim.refuse(refusal)
            return
        else:
            self._begin(replace(target, trace=claim.trace)).claims.append(claim)
        self._brought.note(target.entry)

    def bring(self, target: Target) -> None:
        """Serve `target` under its bare name: now if it is resident, else when it is.

        While an older version of the name is being fetched, or this one failed a moment ago, it
        waits, and gives way to a newer one.
        """
        entry = target.entry
        self._brought.note(entry)
        if self._slots.resident(entry.key) is not None:
            self._names.serve(entry)
            return
        arrival = self._coming.get(entry.key)
        if arrival is None:
            if self._must_wait(entry):
                self._successors.wait(target)
                return
            refusal = self._allowance.refusal(entry.key, target.size)
            if refusal is not None and not self._names.replaces(entry):
                return
            arrival = self._begin(target)
        self._successors.started(entry, fetching=arrival.fetching)
        if entry not in arrival.names:
            arrival.names.append(entry)

    def soonest(self) -> float | None:
        """When a version that waits for another try is due."""
        waiting = self._successors.free()
        return min((self._setbacks.until(t.entry.key) for t in waiting), default=None)

    def tick(self) -> None:
        """Try again what is due."""
        now = self._clock()
        for target in self._successors.free():
            if self._setbacks.until(target.entry.key) <= now:
                self._next_version(target)

    def withdraw(self, claim: Claim) -> NodeError | None:
        """Let go of a claim; what to tell one that waited for pages alone."""
        for arrival in self._coming.values():
            if claim in arrival.claims:
                arrival.claims.remove(claim)
                if arrival.host is not None and not self._within(arrival, arrival.host):
                    return self._allowance.busy(arrival.entry.tenant)
                if arrival.host is not None:
                    return PoolFull(
                        "every adapter page is leased by running requests",
                        hint="retry, or raise LORAPOOL_POOL_MB",
                        retry_after=1.0,
                    )
        return None

    def brings(self, name: Name) -> bool:
        """Whether some version is on its way to be served under the name."""
        return any(
            (entry.tenant, entry.adapter) == name
            for arrival in self._coming.values()
            for entry in arrival.names
        )

    def starving(self, before: float) -> list[Arrival]:
        """Versions that requests wait for, and that have been ready since `before` without pages.

        One that pins, or its tenant's own requests, leave no room for is not among them: nobody can
        make way for it.
        """
        return [
            arrival
            for arrival in self._coming.values()
            if arrival.host is not None
            and arrival.ready_at <= before
            and not all(claim.patient for claim in arrival.claims)
            and self._slots.fits_beside_pins(arrival.host.pages)
            and self._within(arrival, arrival.host)
        ]

    def bring_back(
        self, entry: Entry, host: HostAdapter, names: list[Entry], claims: list[Claim]
    ) -> None:
        """A version that makes way is to come again, for those who held it."""
        now = self._clock()
        self._coming[entry.key] = Arrival(
            entry, claims, names, fetching=False, host=host, ready_at=now, wanted_at=now
        )

    def coming(self) -> Mapping[VersionKey, Arrival]:
        return self._coming

    def count(self, claim: Claim) -> int:
        """In how many places it waits."""
        return sum(arrival.claims.count(claim) for arrival in self._coming.values())

    def check_integrity(self) -> None:
        """Raises AssertionError when a version on its way could be lost."""
        staging = {h.key for h in self._slots.holders() if h.state is Residency.STAGING}
        assert staging <= self._coming.keys(), "pages are being filled for nobody"
        for key, arrival in self._coming.items():
            places = arrival.fetching + (arrival.host is not None) + (key in staging)
            assert places == 1, f"{arrival.entry} is in {places} places"
            assert arrival.entry.key == key

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
        self._successors.forget(name, gen)

    def on_event(self, event: Prepared | Unprepared | Filled | Unfilled) -> None:
        match event:
            case Prepared(key, host, fetched):
                self._loader.settled(key)
                self._on_prepared(key, host, fetched)
            case Unprepared(key, error):
                self._loader.settled(key)
                self._give_up(key, error)
            case Filled(staged):
                self._slots.activate(staged, now=self._clock())
                self._setbacks.succeeded(staged.key)
                self._on_resident(staged.key)
            case Unfilled(staged, error, wiped):
                if wiped:
                    self._slots.abandon(staged)
                else:
                    self._slots.condemn(staged)
                self._give_up(staged.key, error)

    def stage(self) -> None:
        """Give pages to versions that are ready: swaps, then those that requests wait for, in turn.

        A swap that does not fit waits while the old version serves; others pass it, and newcomers
        leave it the headroom. A newcomer that does not fit holds up those after it, or small ones
        would starve it; but not one that pins leave no room for at all, nor one whose tenant's own
        requests hold all the pages it may have.
        """
        ready = self._drop_unwanted()
        full = False
        for arrival in sorted(ready, key=self._line):
            host, newcomer = arrival.host, not self.is_swap(arrival)
            if host is None or (newcomer and full) or not self._within(arrival, host):
                continue
            if self._slots.can_make_room(host.pages, newcomer=newcomer):
                self._fill(arrival, host)
            elif newcomer:
                full = self._slots.fits_beside_pins(host.pages)

    def _drop_unwanted(self) -> list[Arrival]:
        """Versions that are ready and still wanted, in the order in which they were asked for.

        What a newer version of its name has caught up with is wanted by its claims alone.
        """
        ready = [arrival for arrival in self._coming.values() if arrival.host is not None]
        newest: dict[Name, int] = {}
        for arrival in ready:
            for entry in arrival.names:
                name = (entry.tenant, entry.adapter)
                newest[name] = max(entry.gen, newest.get(name, 0))
        wanted = []
        for arrival in ready:
            if arrival.claims or any(
                self._names.is_news(entry) and entry.gen == newest[entry.tenant, entry.adapter]
                for entry in arrival.names
            ):
                wanted.append(arrival)
            else:
                del self._coming[arrival.entry.key]
        return wanted

    def _line(self, arrival: Arrival) -> int:
        if self.is_swap(arrival):
            return 0
        return 2 if all(claim.patient for claim in arrival.claims) else 1

    def _fill(self, arrival: Arrival, host: HostAdapter) -> None:
        arrival.host = None
        arrival.staged_at = self._clock()
        self.meter.stage.observe(arrival.staged_at - arrival.ready_at)
        if not self.is_swap(arrival):
            self._allowance.make_room(arrival.entry.tenant, host.pages)
        staged = self._slots.stage(arrival.entry.key, wanted=host.pages, scale=host.scale)
        self._pool.claim(staged)
        self._names.tell_watcher()
        self._loader.fill(staged, host)

    def _within(self, arrival: Arrival, host: HostAdapter) -> bool:
        """Whether its tenant may have pages for it; the next version of a name always gets them."""
        tenant = arrival.entry.tenant
        return self.is_swap(arrival) or self._allowance.can_have(tenant, host.pages)

    def _begin(self, target: Target) -> Arrival:
        self._allowance.begun(target.entry.key, target.size)
        arrival = self._coming[target.entry.key] = Arrival(
            target.entry, version=target.version, wanted_at=self._clock()
        )
        self._loader.prepare(target)
        return arrival

    def _must_wait(self, entry: Entry) -> bool:
        """Whether the next version of a name is not to be fetched yet."""
        before = self._successors.fetching(entry)
        if before is not None and not self._call_off(before):
            return True
        return self._setbacks.error(entry.key) is not None

    def _call_off(self, key: VersionKey) -> bool:
        """Let go of a fetch that nobody but its name waits for, and that has not begun."""
        arrival = self._coming.get(key)
        if arrival is None or arrival.claims or len(arrival.names) > 1 or not arrival.fetching:
            return False
        if not self._loader.call_off(key):
            return False
        del self._coming[key]
        self._successors.fetched(key)
        return True

    def _go_on(self, key: VersionKey) -> None:
        """The version is fetched, or cannot be: the newest that waited for it has its turn."""
        for target in self._successors.fetched(key):
            self._next_version(target)

    def _next_version(self, target: Target) -> None:
        """Bring it if it is still the next version of a name that is served."""
        self._successors.forget((target.entry.tenant, target.entry.adapter), target.entry.gen)
        if self._names.replaces(target.entry):
            self.bring(target)

    def _on_prepared(self, key: VersionKey, host: HostAdapter, fetched: Fetched | None) -> None:
        if fetched is not None:
            self.meter.fetched(fetch=fetched.fetch, verify=fetched.verify, size=fetched.bytes)
        arrival = self._coming.get(key)
        if arrival is not None and arrival.fetching:
            self._slots.expect(host.pages)
            arrival.source = FROM_STORE if fetched is not None else FROM_HOST
            arrival.host = host
            arrival.fetching = False
            arrival.ready_at = self._clock()
            refusal = self._allowance.too_large(key.tenant, host.pages)
            if refusal is not None and not self.is_swap(arrival):
                self._give_up(key, refusal)
                return
        self._go_on(key)
        self.stage()

    def _on_resident(self, key: VersionKey) -> None:
        arrival = self._coming.pop(key)
        now = self._clock()
        self.meter.arrived(
            arrival.source, promote=now - arrival.staged_at, whole=now - arrival.wanted_at
        )
        for entry in arrival.names:
            self._names.serve(entry)
        for claim in arrival.claims:
            claim.grant()
        self.stage()

    def _give_up(self, key: VersionKey, error: NodeError) -> None:
        """The version cannot be had: its claims are refused, names keep serving what they serve."""
        passing = not is_permanent(error)
        self.meter.refused[error.reason] += 1
        if passing:
            self._setbacks.failed(key, error.again())
        arrival = self._coming.pop(key, None)
        if arrival is not None:
            for entry in arrival.names:
                log.warning("%s@%s not taken into service: %s", entry.adapter, entry.label, error)
                if passing and arrival.version is not None and self._names.replaces(entry):
                    self._successors.wait(Target(entry, arrival.version))
            for claim in arrival.claims:
                claim.refuse(error)
        self._go_on(key)
        self.stage()

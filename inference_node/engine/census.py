"""Which versions a node has, in which tier and state, and what the pool's pages are used for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest

from adapter_store.fleet import Copy, Holding, Standing
from inference_node.adapters.host_tier import HostCopy, HostTier
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Residency, Resident
from inference_node.engine.arrivals import Arrival, Arrivals
from inference_node.engine.foresight import Foresight
from inference_node.engine.names import Name, Names
from inference_node.residency import GroupUse, LoadedVersion, PoolUse, Tier, VersionState

_STATES = {
    Residency.STAGING: VersionState.STAGED,
    Residency.RESIDENT: VersionState.RESIDENT,
    Residency.DRAINING: VersionState.DRAINING,
}


@dataclass(frozen=True, slots=True)
class GroupSize:
    """A module group of the pool."""

    name: str
    page_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """All versions counted, each in its nearest tier, and some of them by name."""

    versions: Mapping[tuple[Tier, VersionState], int]
    listed: tuple[LoadedVersion, ...]


class Census:
    """Reads the books of the engine thread, on the engine thread."""

    def __init__(
        self,
        slots: SlotTable,
        arrivals: Arrivals,
        host: HostTier,
        names: Names,
        foresight: Foresight,
        *,
        groups: Sequence[GroupSize],
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._arrivals = arrivals
        self._host = host
        self._names = names
        self._foresight = foresight
        self._groups = tuple(groups)
        self._clock = clock

    @property
    def host_evictions(self) -> int:
        """Copies that made room for others on the host."""
        return self._host.evictions

    def resident(self, held: Resident) -> LoadedVersion:
        """A version that has pages."""
        return self._resident(held, self._names.served_by(held.key))

    def _resident(self, held: Resident, names: Sequence[Entry]) -> LoadedVersion:
        entry = self._entry(held)
        waits = held.leases or held.state is Residency.STAGING
        return LoadedVersion(
            served=entry.served,
            names=tuple(entry.served for entry in names)
            if held.state is Residency.RESIDENT
            else (),
            tier=Tier.DEVICE,
            state=_STATES[held.state],
            pages=tuple(map(len, held.pages)),
            bytes=sum(
                len(pages) * group.page_bytes
                for pages, group in zip(held.pages, self._groups, strict=True)
            ),
            leases=held.leases,
            pinned=held.state is Residency.RESIDENT and self._slots.is_pinned(held.key),
            idle_seconds=0.0 if waits else max(0.0, self._clock() - held.idle_since),
        )

    def loaded(self) -> tuple[LoadedVersion, ...]:
        """Every version on the device, on the way, or on the host alone."""
        holders, arriving, copies = self._slots.holders(), self._arriving(), self._copies()
        return tuple(sorted(self._described(holders, arriving, copies), key=_place))

    def survey(self, listed: int) -> Survey:
        """Up to `listed` versions by name, those used last, from the device outwards."""
        holders, arriving, copies = self._slots.holders(), self._arriving(), self._copies()
        versions: Counter[tuple[Tier, VersionState]] = Counter()
        for held in holders:
            versions[Tier.DEVICE, _STATES[held.state]] += 1
        on_host = sum(arrival.host is not None for arrival in arriving)
        versions[Tier.STORE, VersionState.FETCHING] = len(arriving) - on_host
        versions[Tier.HOST, VersionState.VERIFIED] = on_host + len(copies)
        holders = nlargest(listed, holders, key=lambda held: (held.last_used, held.stamp))
        listed -= len(holders)
        arriving = arriving[:listed]
        copies = nlargest(listed - len(arriving), copies, key=lambda copy: copy.used_at)
        return Survey(versions, tuple(self._described(holders, arriving, copies)))

    def _arriving(self) -> list[Arrival]:
        """Versions on the way to the device, without pages yet."""
        return [
            arrival
            for key, arrival in self._arrivals.coming().items()
            if not self._slots.holds(key)
        ]

    def _copies(self) -> list[HostCopy]:
        """What is on the host alone, and not on the way from there."""
        elsewhere = {held.key for held in self._slots.holders()} | self._arrivals.coming().keys()
        return [copy for copy in self._host.copies() if copy.entry.key not in elsewhere]

    def _described(
        self, holders: Sequence[Resident], arriving: Sequence[Arrival], copies: Sequence[HostCopy]
    ) -> list[LoadedVersion]:
        names, now = self._names.by_version(), self._clock()
        return [
            *(self._resident(held, names.get(held.key, ())) for held in holders),
            *map(self._on_its_way, arriving),
            *(
                self._off_device(copy.entry, copy.host.bytes, max(0.0, now - copy.used_at))
                for copy in copies
            ),
        ]

    def pool(self) -> PoolUse:
        """Pages by what they are used for, and what waits for some."""
        coming = self._arrivals.coming()
        copies = self._host.copies()
        ready = [arrival for arrival in coming.values() if arrival.host is not None]
        return PoolUse(
            groups=self._group_use(),
            resident=sum(held.state is Residency.RESIDENT for held in self._slots.holders()),
            leases=self._slots.lease_count,
            fetching=sum(
                arrival.host is None and not self._slots.holds(key)
                for key, arrival in coming.items()
            ),
            waiting=len(ready),
            swaps_waiting=sum(map(self._arrivals.is_swap, ready)),
            host_versions=len(copies),
            host_bytes=sum(copy.host.bytes for copy in copies),
            host_budget=self._host.budget,
            stale_seconds=self._names.stalest(self._clock()),
        )

    def holdings(self) -> tuple[Holding, ...]:
        """Every adapter that the node has something of, by name; one pass over the books."""
        copies: dict[Name, dict[str, Copy]] = {}
        for refused in self._foresight.refused():
            entry = refused.entry
            standing = Standing.FAILED if refused.for_good else Standing.COMING
            of_name = copies.setdefault((entry.tenant, entry.adapter), {})
            of_name[entry.key.vdig] = Copy(entry.label, standing, refused.error.reason)
        for entry, standing in self._standings():
            of_name = copies.setdefault((entry.tenant, entry.adapter), {})
            of_name[entry.key.vdig] = Copy(entry.label, standing)
        found = []
        for name in sorted(copies):
            served = self._names.serving(*name)
            generation, digest = (served.gen, served.key.vdig) if served is not None else (0, "")
            found.append(Holding(*name, generation, digest, copies[name]))
        return tuple(found)

    def _standings(self) -> Iterator[tuple[Entry, Standing]]:
        """Every version under every name that it is known by; what is nearer comes later."""
        for copy in self._host.copies():
            yield copy.entry, Standing.HOST
        for arrival in self._arrivals.coming().values():
            standing = Standing.COMING if arrival.fetching else Standing.HOST
            for entry in (arrival.entry, *arrival.names):
                yield entry, standing
        for held in self._slots.holders():
            if held.state is Residency.RESIDENT:
                for entry in held.known_as.values():
                    yield entry, Standing.DEVICE

    def _group_use(self) -> tuple[GroupUse, ...]:
        use, allocator = self._slots.by_use(), self._slots.allocator
        found = []
        for index, group in enumerate(self._groups):
            total, free = allocator.total[index], allocator.free[index]
            idle, pinned = use.idle[index], use.pinned[index]
            condemned = use.condemned[index]
            found.append(
                GroupUse(
                    name=group.name,
                    total=total,
                    free=free,
                    idle=idle,
                    held=total - free - idle - pinned - condemned,
                    pinned=pinned,
                    condemned=condemned,
                    headroom=min(use.headroom[index], free + idle),
                    page_bytes=group.page_bytes,
                )
            )
        return tuple(found)

    def _on_its_way(self, arrival: Arrival) -> LoadedVersion:
        if arrival.host is not None:
            return self._off_device(arrival.entry, arrival.host.bytes, 0.0)
        return LoadedVersion(
            served=arrival.entry.served,
            names=(),
            tier=Tier.STORE,
            state=VersionState.FETCHING,
            pages=self._nothing,
            bytes=0,
            leases=0,
            pinned=False,
            idle_seconds=0.0,
        )

    def _off_device(self, entry: Entry, size: int, idle: float) -> LoadedVersion:
        return LoadedVersion(
            served=entry.served,
            names=(),
            tier=Tier.HOST,
            state=VersionState.VERIFIED,
            pages=self._nothing,
            bytes=size,
            leases=0,
            pinned=False,
            idle_seconds=idle,
        )

    @property
    def _nothing(self) -> tuple[int, ...]:
        return (0,) * len(self._groups)

    def _entry(self, held: Resident) -> Entry:
        if held.known_as:
            return next(reversed(held.known_as.values()))
        arrival = self._arrivals.coming().get(held.key)
        return arrival.entry if arrival is not None else Entry(held.key.tenant, "", "", 0, held.key)


def _place(version: LoadedVersion) -> tuple[str, str, str, str]:
    served = version.served
    return served.tenant, served.adapter, served.digest, version.state.value

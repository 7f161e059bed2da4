"""Who is where: which versions hold which pages, who leases them, and what each name serves.

Pure bookkeeping, owned by the engine thread. A version is known by (tenant, vdig) and never by a
name or a slot number, so equal content under two generations shares pages and a re-used name can
never reach another version's. Invariants, checked by `check_integrity`:

    pages of all residents + free pages = all pages, in every group, no page twice
    a name serves only a version that is wholly resident
    a leased version keeps its pages, whatever is published, superseded or evicted
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class VersionKey:
    """Identity of content on this node."""

    tenant: str
    vdig: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name resolved to: immutable, held by a request from admission to its last token."""

    tenant: str
    adapter: str
    label: str
    gen: int
    key: VersionKey


class Residency(Enum):
    """Where a version stands on the way to, or from, the device."""

    STAGING = "staging"
    """Pages are taken and being filled; nobody may read them."""
    RESIDENT = "resident"
    DRAINING = "draining"
    """No new lease; freed when the last one is dropped."""
    FREED = "freed"


@dataclass(slots=True, eq=False)
class Resident:
    """A version that holds pages."""

    key: VersionKey
    pages: tuple[tuple[int, ...], ...]  # [groups][pages]
    scale: float
    stamp: int
    """Distinct for every allocation; the pool's pages carry it while they are this version's."""
    state: Residency = Residency.STAGING
    leases: int = 0
    last_used: int = 0
    since: float = 0.0
    """When requests could first hold it, on the engine's clock."""
    superseded: bool = False
    """A newer version serves the name: first to go when pages are needed."""


class PageAllocator:
    """Page numbers of every group. Page 0 of each group is all zeros and never handed out."""

    def __init__(self, pages: Sequence[int]) -> None:
        """`pages[g]` pages may be handed out in group g: numbers 1 to pages[g]."""
        self.total = tuple(pages)
        self._free = [list(range(count, 0, -1)) for count in pages]

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self._free)

    def fits_empty(self, wanted: Sequence[int]) -> bool:
        """Whether `wanted` pages per group could ever be had."""
        return all(want <= total for want, total in zip(wanted, self.total, strict=True))

    def can_allocate(self, wanted: Sequence[int]) -> bool:
        return all(want <= have for want, have in zip(wanted, self.free, strict=True))

    def allocate(self, wanted: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """All of them at once. Call only after `can_allocate`."""
        assert self.can_allocate(wanted)
        return tuple(
            tuple(group.pop() for _ in range(want))
            for group, want in zip(self._free, wanted, strict=True)
        )

    def release(self, pages: Sequence[Sequence[int]]) -> None:
        for group, returned in zip(self._free, pages, strict=True):
            group.extend(reversed(returned))

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """`held[g]` are the pages in use in group g: with the free ones, each exactly once."""
        for group, (free, used) in enumerate(zip(self._free, held, strict=True)):
            everything = sorted([*free, *used])
            assert everything == list(range(1, self.total[group] + 1)), f"group {group} pages"


@dataclass(slots=True)
class SlotTable:
    """Residents, leases and what names serve."""

    allocator: PageAllocator
    _residents: dict[VersionKey, Resident] = field(default_factory=dict)
    _leaving: list[Resident] = field(default_factory=list)
    _serving: dict[tuple[str, str], Entry] = field(default_factory=dict)
    _stamps: int = 0
    _ticks: int = 0
    lease_count: int = 0
    """Leases held on all versions together."""

    def resident(self, key: VersionKey) -> Resident | None:
        """The version's pages, when they are filled and may be leased."""
        found = self._residents.get(key)
        return found if found is not None and found.state is Residency.RESIDENT else None

    def holds(self, key: VersionKey) -> bool:
        """Whether pages are taken for this version, filled or not."""
        return key in self._residents

    def serving(self, tenant: str, adapter: str) -> Entry | None:
        """What the bare name means on this node now."""
        return self._serving.get((tenant, adapter))

    def served_names(self) -> list[tuple[str, str]]:
        return list(self._serving)

    def lease(self, key: VersionKey) -> Resident:
        """Hold a resident version. Call only when `resident(key)` is not None."""
        found = self.resident(key)
        assert found is not None
        self._ticks += 1
        found.leases += 1
        self.lease_count += 1
        found.last_used = self._ticks
        return found

    def release(self, held: Resident) -> None:
        """Drop one lease; a draining version without leases gives its pages back."""
        assert held.leases > 0, "a lease is dropped once"
        held.leases -= 1
        self.lease_count -= 1
        if held.state is Residency.DRAINING and held.leases == 0:
            self._free(held)

    def can_make_room(self, wanted: Sequence[int]) -> bool:
        """Whether evicting idle versions would leave `wanted` pages free."""
        free = list(self.allocator.free)
        for idle in self._idle():
            for group, pages in enumerate(idle.pages):
                free[group] += len(pages)
        return all(want <= have for want, have in zip(wanted, free, strict=True))

    def shortfall(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """Pages that `wanted` would lack in each group once all that is idle or drains is gone."""
        going = [*self._idle(), *self._leaving]
        return tuple(
            max(0, want - free - sum(len(resident.pages[group]) for resident in going))
            for group, (want, free) in enumerate(zip(wanted, self.allocator.free, strict=True))
        )

    def drainable(self, before: float) -> list[Resident]:
        """Versions that requests hold, and have been able to since `before`."""
        return [
            resident
            for resident in self._residents.values()
            if resident.state is Residency.RESIDENT and resident.leases and resident.since <= before
        ]

    def stage(self, key: VersionKey, *, wanted: Sequence[int], scale: float) -> Resident:
        """Take pages for a version, evicting idle ones. Call only after `can_make_room`."""
        assert key not in self._residents
        victims = iter(self._idle())
        while not self.allocator.can_allocate(wanted):
            self._evict(next(victims))
        self._stamps += 1
        staged = Resident(key, self.allocator.allocate(wanted), scale, self._stamps)
        self._residents[key] = staged
        return staged

    def abandon(self, staged: Resident) -> None:
        """Give back the pages of a version that could not be filled."""
        assert staged.state is Residency.STAGING
        del self._residents[staged.key]
        self._free(staged)

    def activate(self, staged: Resident, *, now: float = 0.0) -> None:
        """The pages are filled: from now on the version may be leased."""
        assert staged.state is Residency.STAGING
        staged.since = now
        self._ticks += 1
        staged.last_used = self._ticks
        staged.state = Residency.RESIDENT

    def serve(self, entry: Entry) -> None:
        """Make `entry` what its name means. Its version is resident; generations only rise."""
        target = self.resident(entry.key)
        assert target is not None
        before = self._serving.get((entry.tenant, entry.adapter))
        assert before is None or before.gen <= entry.gen
        self._serving[entry.tenant, entry.adapter] = entry
        target.superseded = False
        if before is not None and before.key != entry.key:
            self._mark_superseded(before.key)

    def forget(self, tenant: str, adapter: str) -> None:
        """The name serves nothing any more."""
        before = self._serving.pop((tenant, adapter), None)
        if before is not None:
            self._mark_superseded(before.key)

    def drain(self, key: VersionKey) -> None:
        """Refuse new leases of a version; free it when the last one ends."""
        found = self.resident(key)
        if found is not None:
            self._remove(found)
            found.state = Residency.DRAINING
            if found.leases:
                self._leaving.append(found)
            else:
                self._free(found)

    @property
    def resident_count(self) -> int:
        return len(self._residents)

    def check_integrity(self) -> None:
        """Raises AssertionError when pages, names and leases do not add up."""
        holders = [*self._residents.values(), *self._leaving]
        groups = range(len(self.allocator.total))
        self.allocator.check_integrity(
            [[page for holder in holders for page in holder.pages[group]] for group in groups]
        )
        for entry in self._serving.values():
            assert self.resident(entry.key) is not None, f"{entry.adapter} serves nothing resident"
        assert self.lease_count == sum(holder.leases for holder in holders)
        for holder in holders:
            assert holder.leases >= 0
            assert holder.state is not Residency.FREED

    def _idle(self) -> list[Resident]:
        """Evictable versions, first to go first: superseded before serving, then least recent."""
        idle = [
            r for r in self._residents.values() if r.state is Residency.RESIDENT and not r.leases
        ]
        return sorted(idle, key=lambda r: (not r.superseded, r.last_used))

    def _evict(self, victim: Resident) -> None:
        self._remove(victim)
        self._free(victim)

    def _remove(self, resident: Resident) -> None:
        del self._residents[resident.key]
        for name, entry in list(self._serving.items()):
            if entry.key == resident.key:
                del self._serving[name]

    def _free(self, resident: Resident) -> None:
        resident.state = Residency.FREED
        if resident in self._leaving:
            self._leaving.remove(resident)
        self.allocator.release(resident.pages)

    def _mark_superseded(self, key: VersionKey) -> None:
        if all(entry.key != key for entry in self._serving.values()):
            resident = self._residents.get(key)
            if resident is not None:
                resident.superseded = True

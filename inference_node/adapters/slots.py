"""Who is where: which versions hold which pages, who leases them, and what each name serves.

Pure bookkeeping, owned by the engine thread. A version is known by (tenant, vdig) and never by a
name or a slot number, so equal content under two generations shares pages and a re-used name can
never reach another version's. Invariants, checked by `check_integrity`:

    pages of all residents + free pages = all pages, in every group, no page twice
    a name serves only a version that is wholly resident
    a leased version keeps its pages, whatever is published, superseded or evicted
    a pinned version is neither evicted nor drained to make room

What is evicted to make room, and in which order, is `recency.py`'s choice among what is idle. A
headroom, by default as large as the largest version so far, is kept from newcomers for the next
version of a name that is served: of what idles or is free they leave that much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference_node.adapters.headroom import Headroom
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.recency import Recency
from inference_node.adapters.versions import Entry, Residency, Resident, VersionKey


@dataclass(frozen=True, slots=True)
class PagesByUse:
    """Pages of each group; what is neither is held by requests, being filled or drained."""

    idle: tuple[int, ...]
    pinned: tuple[int, ...]
    condemned: tuple[int, ...]
    headroom: tuple[int, ...]
    """That newcomers leave, of those that are free or idle."""


@dataclass(slots=True)
class SlotTable:
    """Residents, leases and what names serve."""

    allocator: PageAllocator
    headroom: Sequence[int] | None = None
    """Pages of each group that newcomers leave; None: as many as the largest version so far."""
    _residents: dict[VersionKey, Resident] = field(default_factory=dict)
    _leaving: list[Resident] = field(default_factory=list)
    _condemned: list[Resident] = field(default_factory=list)
    _serving: dict[tuple[str, str], Entry] = field(default_factory=dict)
    _pinned_versions: set[VersionKey] = field(default_factory=set)
    _pinned_names: set[tuple[str, str]] = field(default_factory=set)
    _recency: Recency[VersionKey] = field(init=False)
    _headroom: Headroom = field(init=False)
    _stamps: int = 0
    _ticks: int = 0
    lease_count: int = 0
    """Leases held on all versions together."""
    evictions: int = 0
    """Versions that idled and made room for others."""

    def __post_init__(self) -> None:
        self._recency = Recency(sum(self.allocator.total))
        self._headroom = Headroom(self.allocator.total, self.headroom)

    def resident(self, key: VersionKey) -> Resident | None:
        """The version's pages, when they are filled and may be leased."""
        found = self._residents.get(key)
        return found if found is not None and found.state is Residency.RESIDENT else None

    def holds(self, key: VersionKey) -> bool:
        """Whether pages are taken for this version, filled or not."""
        return key in self._residents

    def holders(self) -> list[Resident]:
        """Every version that has pages and is not condemned, draining ones last."""
        return [*self._residents.values(), *self._leaving]

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
        if found.used:
            self._recency.used_again(key)
        else:
            found.used = True
            self._recency.used(key)
        return found

    def release(self, held: Resident, *, now: float = 0.0) -> None:
        """Drop one lease; a draining version without leases gives its pages back."""
        assert held.leases > 0, "a lease is dropped once"
        held.leases -= 1
        held.idle_since = now
        self.lease_count -= 1
        if held.state is Residency.DRAINING and held.leases == 0:
            self._free(held)

    def can_make_room(self, wanted: Sequence[int], *, newcomer: bool = False) -> bool:
        """Whether evicting idle versions would leave `wanted` pages free.

        For a newcomer: and the headroom beside them, or all that is not pinned.
        """
        room = self._room(self._idle())
        return all(
            want <= have for want, have in zip(self._ask(wanted, newcomer), room, strict=True)
        )

    def expect(self, wanted: Sequence[int]) -> None:
        """A version of so many pages is on its way: newcomers leave it that headroom."""
        self._headroom.expect(wanted)

    def can_keep_within(self, tenant: str, wanted: int, most: float) -> bool:
        """Whether `wanted` pages more would leave a tenant at `most`, its own idle ones gone."""
        idle = sum(_size(held) for held in self._idle() if held.key.tenant == tenant)
        return self.pages_of(tenant) - idle + wanted <= most

    def keep_within(self, tenant: str, wanted: int, most: float) -> None:
        """Evict a tenant's idle versions until then. Call only after `can_keep_within`."""
        for victim in self._idle():
            if self.pages_of(tenant) + wanted <= most:
                return
            if victim.key.tenant == tenant:
                self._evict(victim)

    def pages_of(self, tenant: str) -> int:
        """Pages that its versions hold, of all groups together."""
        return sum(_size(held) for held in self.holders() if held.key.tenant == tenant)

    def fits_beside_pins(self, wanted: Sequence[int]) -> bool:
        """Whether `wanted` could be had if all that can ever go were gone."""
        fixed = self._pages_of([*self._pinned_residents(), *self._condemned])
        return all(
            want + used <= total
            for want, used, total in zip(wanted, fixed, self.allocator.total, strict=True)
        )

    def shortfall(self, wanted: Sequence[int], *, newcomer: bool = False) -> tuple[int, ...]:
        """Pages that `wanted` would lack in each group once all that is idle or drains is gone."""
        room = self._room([*self._idle(), *self._leaving])
        return tuple(
            max(0, want - have)
            for want, have in zip(self._ask(wanted, newcomer), room, strict=True)
        )

    def drainable(self, before: float) -> list[Resident]:
        """Versions that requests hold, and have been able to since `before`; none is pinned."""
        pinned = self._pinned()
        return [
            resident
            for resident in self._residents.values()
            if resident.state is Residency.RESIDENT
            and resident.leases
            and resident.since <= before
            and resident.key not in pinned
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
        self._recency.add(key, sum(wanted))
        self._headroom.expect(wanted)
        return staged

    def abandon(self, staged: Resident) -> None:
        """Give back the pages of a version that could not be filled."""
        assert staged.state is Residency.STAGING
        self._remove(staged)
        self._free(staged)

    def condemn(self, staged: Resident) -> None:
        """As `abandon`, for pages that could not be wiped: they are never handed out again."""
        assert staged.state is Residency.STAGING
        self._remove(staged)
        staged.state = Residency.CONDEMNED
        self._condemned.append(staged)

    def activate(self, staged: Resident, *, now: float = 0.0) -> None:
        """The pages are filled: from now on the version may be leased."""
        assert staged.state is Residency.STAGING
        staged.since = staged.idle_since = now
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
        target.know(entry)
        target.superseded = False
        if before is not None and before.key != entry.key:
            self._recency.inherit(entry.key, before.key)
            self._mark_superseded(before.key)

    def forget(self, tenant: str, adapter: str) -> None:
        """The name serves nothing any more, and is not pinned."""
        self._pinned_names.discard((tenant, adapter))
        before = self._serving.pop((tenant, adapter), None)
        if before is not None:
            self._mark_superseded(before.key)

    def drain(self, key: VersionKey) -> None:
        """Refuse new leases of a version; free it when the last one ends."""
        found = self.resident(key)
        if found is not None:
            self._pinned_versions.discard(key)
            self._remove(found)
            found.state = Residency.DRAINING
            if found.leases:
                self._leaving.append(found)
            else:
                self._free(found)

    def can_pin(self, key: VersionKey) -> bool:
        """Whether pinning a version leaves room for the largest one, and for the headroom."""
        found = self.resident(key)
        assert found is not None
        pinned = {found.key: found} | {held.key: held for held in self._pinned_residents()}
        return self._headroom.fits_beside(self._pages_of([*pinned.values(), *self._condemned]))

    def pin(self, key: VersionKey) -> None:
        """Keep a resident version. Call only after `can_pin`."""
        assert self.resident(key) is not None
        self._pinned_versions.add(key)

    def pin_name(self, tenant: str, adapter: str) -> None:
        """Keep whatever a served name serves, from version to version."""
        assert (tenant, adapter) in self._serving
        self._pinned_names.add((tenant, adapter))

    def unpin(self, key: VersionKey) -> bool:
        """Whether it was pinned by itself."""
        was = key in self._pinned_versions
        self._pinned_versions.discard(key)
        return was

    def unpin_name(self, tenant: str, adapter: str) -> bool:
        was = (tenant, adapter) in self._pinned_names
        self._pinned_names.discard((tenant, adapter))
        return was

    def is_pinned(self, key: VersionKey) -> bool:
        """By itself or by a name that serves it."""
        return key in self._pinned()

    def is_pinned_itself(self, key: VersionKey) -> bool:
        return key in self._pinned_versions

    def is_pinned_name(self, tenant: str, adapter: str) -> bool:
        return (tenant, adapter) in self._pinned_names

    def by_use(self) -> PagesByUse:
        """Where the pages are."""
        return PagesByUse(
            idle=self._pages_of(self._idle()),
            pinned=self._pages_of(self._pinned_residents()),
            condemned=self._pages_of(self._condemned),
            headroom=self._headroom.pages,
        )

    @property
    def resident_count(self) -> int:
        return len(self._residents)

    def check_integrity(self) -> None:
        """Raises AssertionError when pages, names and leases do not add up."""
        holders = [*self._residents.values(), *self._leaving, *self._condemned]
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
        for key in self._pinned_versions:
            assert self.resident(key) is not None, f"{key} is pinned and not here"
        assert self._pinned_names <= self._serving.keys(), "a pinned name serves nothing"
        self._recency.check_integrity()
        assert set(self._recency) == self._residents.keys()

    def _idle(self) -> list[Resident]:
        """Evictable versions, first to go first: superseded before serving, then by recency."""
        pinned = self._pinned()
        idle = [
            resident
            for resident in map(self._residents.__getitem__, self._recency)
            if resident.state is Residency.RESIDENT
            and not resident.leases
            and resident.key not in pinned
        ]
        return sorted(idle, key=lambda r: not r.superseded)

    def _pinned(self) -> set[VersionKey]:
        return self._pinned_versions | {self._serving[name].key for name in self._pinned_names}

    def _pinned_residents(self) -> list[Resident]:
        return [self._residents[key] for key in self._pinned()]

    def _ask(self, wanted: Sequence[int], newcomer: bool) -> tuple[int, ...]:
        """What must be free for `wanted`; a newcomer never asks for more than could be."""
        if not newcomer:
            return tuple(wanted)
        fixed = self._pages_of([*self._pinned_residents(), *self._condemned])
        return self._headroom.asked(wanted, fixed=fixed)

    def _room(self, going: Sequence[Resident]) -> tuple[int, ...]:
        """Free pages once all of `going` is gone."""
        return tuple(
            free + used
            for free, used in zip(self.allocator.free, self._pages_of(going), strict=True)
        )

    def _pages_of(self, residents: Sequence[Resident]) -> tuple[int, ...]:
        groups = range(len(self.allocator.total))
        return tuple(sum(len(held.pages[group]) for held in residents) for group in groups)

    def _evict(self, victim: Resident) -> None:
        self.evictions += 1
        self._remove(victim)
        self._free(victim)

    def _remove(self, resident: Resident) -> None:
        del self._residents[resident.key]
        self._recency.remove(resident.key)
        for name, entry in list(self._serving.items()):
            if entry.key == resident.key:
                del self._serving[name]
                self._pinned_names.discard(name)

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


def _size(held: Resident) -> int:
    """Pages of all groups together."""
    return sum(map(len, held.pages))

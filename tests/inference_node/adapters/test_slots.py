"""Any order of loads, leases, swaps and evictions leaves pages, leases and names adding up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Residency, Resident, VersionKey

PAGES = (6, 8)
KEYS = [VersionKey(tenant, f"{number}" * 8) for tenant in ("t", "u") for number in range(3)]
NAMES = ("anna", "ben")


@dataclass
class Lease:
    """What a request holds, and what it saw when it took it."""

    held: Resident
    pages: tuple[tuple[int, ...], ...]
    stamp: int


class SlotMachine(RuleBasedStateMachine):
    """Drives a table and keeps its own, simpler account of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(PageAllocator(PAGES))
        self.staging: list[Resident] = []
        self.leases: list[Lease] = []
        self.generations: dict[tuple[str, str], int] = {}

    def residents(self) -> list[VersionKey]:
        return [key for key in KEYS if self.table.resident(key) is not None]

    def busy(self) -> list[Resident]:
        """Versions whose pages must stay theirs: being filled, or leased."""
        return [*self.staging, *{id(lease.held): lease.held for lease in self.leases}.values()]

    @rule(key=st.sampled_from(KEYS), wanted=st.tuples(st.integers(0, 3), st.integers(0, 4)))
    def stage(self, key: VersionKey, wanted: tuple[int, int]) -> None:
        if self.table.holds(key) or not any(wanted):
            return
        bound = [sum(len(r.pages[group]) for r in self.busy()) for group in range(len(PAGES))]
        possible = all(
            want + used <= total for want, used, total in zip(wanted, bound, PAGES, strict=True)
        )
        assert self.table.can_make_room(wanted) == possible
        if not possible:
            return
        enough = self.table.allocator.can_allocate(wanted)
        before = {key: self.table.resident(key) for key in self.residents()}
        staged = self.table.stage(key, wanted=wanted, scale=1.0)
        gone = [r for key, r in before.items() if self.table.resident(key) is None]
        assert not (enough and gone), "evicted although there was room"
        if any(r is not None and not r.superseded for r in gone):
            spared = [self.table.resident(key) for key in self.residents()]
            assert not [r for r in spared if r is not None and r.superseded and not r.leases]
        assert tuple(map(len, staged.pages)) == wanted
        assert staged.state is Residency.STAGING
        self.staging.append(staged)

    @precondition(lambda self: self.staging)
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        staged = data.draw(st.sampled_from(self.staging))
        assert self.table.resident(staged.key) is None, "readable before it is filled"
        self.staging.remove(staged)
        self.table.activate(staged)
        assert self.table.resident(staged.key) is staged

    @precondition(lambda self: self.staging)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        staged = data.draw(st.sampled_from(self.staging))
        self.staging.remove(staged)
        self.table.abandon(staged)
        assert not self.table.holds(staged.key)

    @precondition(lambda self: self.residents())
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        held = self.table.lease(data.draw(st.sampled_from(self.residents())))
        self.leases.append(Lease(held, held.pages, held.stamp))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.leases.remove(lease)
        self.table.release(lease.held)

    @precondition(lambda self: self.residents())
    @rule(data=st.data(), name=st.sampled_from(NAMES), newer=st.booleans())
    def serve(self, data: st.DataObject, name: str, newer: bool) -> None:
        key = data.draw(st.sampled_from(self.residents()))
        gen = self.generations.get((key.tenant, name), 0) + newer
        self.generations[key.tenant, name] = gen
        entry = Entry(key.tenant, name, f"v{gen}", gen, key)
        self.table.serve(entry)
        assert self.table.serving(key.tenant, name) is entry

    @rule(tenant=st.sampled_from(("t", "u")), name=st.sampled_from(NAMES))
    def forget(self, tenant: str, name: str) -> None:
        self.table.forget(tenant, name)
        assert self.table.serving(tenant, name) is None

    @precondition(lambda self: self.residents())
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.residents()))
        self.table.drain(key)
        assert self.table.resident(key) is None
        assert not self.table.holds(key)

    @invariant()
    def everything_adds_up(self) -> None:
        self.table.check_integrity()

    @invariant()
    def leases_are_counted(self) -> None:
        assert self.table.lease_count == len(self.leases)
        for lease in self.leases:
            assert lease.held.leases == sum(other.held is lease.held for other in self.leases)

    @invariant()
    def a_lease_keeps_its_pages(self) -> None:
        taken: set[tuple[int, int]] = set()
        for lease in self.leases:
            assert lease.held.pages == lease.pages
            assert lease.held.stamp == lease.stamp
            assert lease.held.state in (Residency.RESIDENT, Residency.DRAINING)
        for holder in self.busy():
            own = {(group, page) for group, pages in enumerate(holder.pages) for page in pages}
            assert not own & taken, "two versions share a page"
            assert all(page > 0 for _, page in own), "page 0 was handed out"
            taken |= own

    @invariant()
    def a_name_serves_a_readable_version_of_its_tenant(self) -> None:
        for tenant, name in self.table.served_names():
            entry = self.table.serving(tenant, name)
            assert entry is not None
            assert entry.key.tenant == tenant
            assert self.table.resident(entry.key) is not None

    def teardown(self) -> None:
        for staged in self.staging:
            self.table.abandon(staged)
        for lease in self.leases:
            self.table.release(lease.held)
        for key in self.residents():
            self.table.drain(key)
        self.table.check_integrity()
        assert self.table.allocator.free == PAGES
        assert self.table.resident_count == 0
        assert self.table.served_names() == []


def test_no_order_of_operations_breaks_the_books() -> None:
    run_state_machine_as_test(
        SlotMachine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
    )


def evict_leased_versions(self: SlotTable) -> list[Resident]:
    return [r for r in self._residents.values() if r.state is Residency.RESIDENT]


def evict_versions_that_are_being_filled(self: SlotTable) -> list[Resident]:
    return [r for r in self._residents.values() if not r.leases]


def spare_what_is_superseded(self: SlotTable) -> list[Resident]:
    idle = [r for r in evict_leased_versions(self) if not r.leases]
    return sorted(idle, key=lambda r: r.superseded)


def free_twice(self: SlotTable, resident: Resident) -> None:
    resident.state = Residency.FREED
    if resident in self._leaving:
        self._leaving.remove(resident)
    self.allocator.release(resident.pages)
    self.allocator.release(resident.pages)


def forget_to_free(self: SlotTable, resident: Resident) -> None:
    resident.state = Residency.FREED


def keep_names_of_what_is_gone(self: SlotTable, resident: Resident) -> None:
    del self._residents[resident.key]


def free_what_is_leased(self: SlotTable, key: VersionKey) -> None:
    found = self.resident(key)
    if found is not None:
        self._remove(found)
        self._free(found)


def readable_before_it_is_filled(self: SlotTable, key: VersionKey) -> Resident | None:
    return self._residents.get(key)


def count_a_lease_once_for_all(self: SlotTable, key: VersionKey) -> Resident:
    found = self._residents[key]
    self.lease_count += 1
    found.leases = 1
    return found


def hand_out_the_same_pages(
    self: PageAllocator, wanted: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    pairs = zip(self._free, wanted, strict=True)
    return tuple(tuple(group[len(group) - want :]) for group, want in pairs)


@pytest.mark.parametrize(
    ("owner", "method", "bug"),
    [
        (SlotTable, "_idle", evict_leased_versions),
        (SlotTable, "_idle", evict_versions_that_are_being_filled),
        (SlotTable, "_free", free_twice),
        (SlotTable, "_free", forget_to_free),
        (SlotTable, "_remove", keep_names_of_what_is_gone),
        (SlotTable, "drain", free_what_is_leased),
        (SlotTable, "resident", readable_before_it_is_filled),
        (SlotTable, "lease", count_a_lease_once_for_all),
        (PageAllocator, "allocate", hand_out_the_same_pages),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_control_the_machine_catches_a_seeded_bug(
    owner: type[Any], method: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, bug)
    quick = settings(
        max_examples=1000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises((AssertionError, ValueError, KeyError)):
        run_state_machine_as_test(SlotMachine, settings=quick)


def table_with(*versions: str, pages: int = 4) -> SlotTable:
    """A table of one group with these versions resident, one page each, oldest first."""
    table = SlotTable(PageAllocator([pages]))
    for vdig in versions:
        table.activate(table.stage(key_of(vdig), wanted=[1], scale=1.0))
    return table


def key_of(vdig: str, tenant: str = "t") -> VersionKey:
    return VersionKey(tenant, vdig)


def entry_of(vdig: str, gen: int, *, name: str = "anna") -> Entry:
    return Entry("t", name, f"v{gen}", gen, key_of(vdig))


def test_the_least_recently_used_idle_version_goes_first() -> None:
    table = table_with("a", "b", "c", "d")
    table.release(table.lease(key_of("a")))
    table.stage(key_of("e"), wanted=[2], scale=1.0)
    assert [table.holds(key_of(v)) for v in "abcde"] == [True, False, False, True, True]


def test_a_superseded_version_goes_before_an_older_one_that_still_serves() -> None:
    table = table_with("a", "b", "c", "d")
    table.serve(entry_of("d", 1))
    table.serve(entry_of("c", 2))
    table.stage(key_of("e"), wanted=[1], scale=1.0)
    assert not table.holds(key_of("d"))
    assert table.holds(key_of("a"))


def test_control_evicting_what_serves_before_what_is_superseded_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SlotTable, "_idle", spare_what_is_superseded)
    with pytest.raises(AssertionError):
        test_a_superseded_version_goes_before_an_older_one_that_still_serves()


def test_content_that_serves_another_name_is_not_superseded() -> None:
    table = table_with("a", "b")
    table.serve(entry_of("a", 1))
    table.serve(entry_of("a", 1, name="ben"))
    table.serve(entry_of("b", 2))
    kept = table.resident(key_of("a"))
    assert kept is not None
    assert not kept.superseded


def test_rolling_back_to_a_resident_version_takes_no_pages() -> None:
    table = table_with("a", "b")
    free = table.allocator.free
    table.serve(entry_of("a", 1))
    table.serve(entry_of("b", 2))
    table.serve(entry_of("a", 3))
    assert table.allocator.free == free
    rolled_back = table.resident(key_of("a"))
    assert rolled_back is not None
    assert not rolled_back.superseded


def test_a_request_keeps_its_version_while_a_newer_one_is_served_and_drained() -> None:
    table = table_with("a", "b")
    table.serve(entry_of("a", 1))
    held = table.lease(key_of("a"))
    pages = held.pages
    table.serve(entry_of("b", 2))
    table.drain(key_of("a"))
    assert table.resident(key_of("a")) is None
    assert not table.can_make_room([4])
    again = table.stage(key_of("a"), wanted=[1], scale=1.0)
    assert again.pages != pages
    assert again.stamp != held.stamp
    table.check_integrity()
    table.release(held)
    assert held.state is Residency.FREED
    table.check_integrity()


def test_equal_digests_of_two_tenants_are_two_versions() -> None:
    table = SlotTable(PageAllocator([2]))
    staged = [table.stage(key_of("a", tenant), wanted=[1], scale=1.0) for tenant in ("t", "u")]
    assert staged[0].pages != staged[1].pages


def test_pages_that_requests_hold_make_no_room() -> None:
    table = table_with("a", "b", "c", "d")
    for vdig in "abcd":
        table.lease(key_of(vdig))
    assert not table.can_make_room([1])


@pytest.mark.parametrize(
    "misuse",
    [
        lambda table: table.lease(key_of("absent")),
        lambda table: table.release(table.resident(key_of("a"))),
        lambda table: table.stage(key_of("a"), wanted=[1], scale=1.0),
        lambda table: table.activate(table.resident(key_of("a"))),
        lambda table: table.abandon(table.resident(key_of("a"))),
        lambda table: table.serve(entry_of("absent", 9)),
        lambda table: table.serve(entry_of("a", 1)),
        lambda table: table.allocator.allocate([99]),
    ],
    ids=[
        "lease-absent",
        "release-unleased",
        "stage-twice",
        "activate-twice",
        "abandon-resident",
        "serve-absent",
        "serve-older",
        "allocate-too-much",
    ],
)
def test_breaking_a_rule_of_the_table_fails_at_once(misuse: Callable[[SlotTable], None]) -> None:
    table = table_with("a", "b")
    table.serve(entry_of("b", 2))
    with pytest.raises(AssertionError):
        misuse(table)
    table.check_integrity()

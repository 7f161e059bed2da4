"""The pool holds each version's bytes on that version's pages, and nothing else reads them."""

from __future__ import annotations

import pytest
import torch

from inference_node.adapters.pool import AdapterPool, StalePages
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Resident, VersionKey
from inference_node.adapters.weights import HostAdapter, host_adapter
from tests.inference_node.adapters.contents import ALL, MAP, content

CPU = torch.device("cpu")


class Rooms:
    """A pool of a few pages with its table."""

    def __init__(self, pages: int = 4, *, dtype: torch.dtype = torch.float32) -> None:
        elements = sum(group.shape.page_elements(MAP.layers) for group in MAP.groups)
        self.pool = AdapterPool(
            MAP, pool_bytes=pages * elements * dtype.itemsize, dtype=dtype, device=CPU
        )
        self.slots = SlotTable(self.pool.allocator)
        self.dtype = dtype

    def load(self, vdig: str, rank: int, *, targets: tuple[str, ...] = ALL) -> Resident:
        host = self.host(vdig, rank, targets=targets)
        staged = self.slots.stage(VersionKey("t", vdig), wanted=host.pages, scale=host.scale)
        self.pool.claim(staged)
        self.pool.write(staged, host)
        self.slots.activate(staged)
        return staged

    def host(self, vdig: str, rank: int, *, targets: tuple[str, ...] = ALL) -> HostAdapter:
        found = content(rank, targets=targets, seed=int(vdig))
        return host_adapter(found, MAP, dtype=self.dtype)

    def holds(self, held: Resident, host: HostAdapter) -> bool:
        pairs = zip(self.pool.read_back(held), host.groups, strict=True)
        return all(
            a.numel() == 0 if group is None else torch.equal(a, group.a) and torch.equal(b, group.b)
            for (a, b), group in pairs
        )


def test_the_budget_buys_equal_pages_of_every_group_and_the_null_page_beside_them() -> None:
    rooms = Rooms(4)
    assert rooms.pool.allocator.total == (4, 4)
    for group, module_group in zip(rooms.pool.groups, MAP.groups, strict=True):
        assert group.a.shape == (5, 2, *module_group.shape.a_page)
        assert group.b.shape == (5, 2, *module_group.shape.b_page)
    held = sum(group.a[1:].numel() + group.b[1:].numel() for group in rooms.pool.groups)
    assert held * 4 == 4 * rooms.pool.page_bytes


def test_a_budget_below_one_page_still_buys_one() -> None:
    pool = AdapterPool(MAP, pool_bytes=1, dtype=torch.float32, device=CPU)
    assert pool.allocator.total == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_back_bit_for_bit(dtype: torch.dtype) -> None:
    rooms = Rooms(6, dtype=dtype)
    one, two = rooms.load("1", 5), rooms.load("2", 12)
    three = rooms.load("3", 16, targets=("down",))
    assert rooms.holds(one, rooms.host("1", 5))
    assert rooms.holds(two, rooms.host("2", 12))
    assert rooms.holds(three, rooms.host("3", 16, targets=("down",)))
    assert not rooms.holds(one, rooms.host("2", 5))


def test_a_re_used_page_keeps_nothing_of_the_version_before() -> None:
    rooms = Rooms(2)
    rooms.load("1", 16)
    small = rooms.load("2", 3)
    assert rooms.holds(small, rooms.host("2", 3))


def test_page_0_stays_zeros_whatever_is_loaded() -> None:
    rooms = Rooms(3)
    for number in range(1, 12):
        rooms.load(str(number), (1, 8, 9, 24)[number % 4])
        for group in rooms.pool.groups:
            assert not group.a[0].any()
            assert not group.b[0].any()


def test_a_leased_version_is_routed_to_its_own_pages() -> None:
    rooms = Rooms()
    held = rooms.load("1", 12)
    routed = rooms.pool.routing(held)
    assert routed.pages == held.pages
    assert routed.scale == held.scale


def test_a_version_whose_pages_went_to_another_is_refused_not_served() -> None:
    rooms = Rooms(2)
    gone = rooms.load("1", 16)
    rooms.load("2", 16)
    with pytest.raises(StalePages, match="is not"):
        rooms.pool.routing(gone)


def test_the_same_version_loaded_again_does_not_validate_its_old_page_list() -> None:
    rooms = Rooms(2)
    old = rooms.load("1", 16)
    rooms.load("2", 16)
    new = rooms.load("1", 16)
    assert rooms.pool.routing(new).pages == new.pages
    with pytest.raises(StalePages):
        rooms.pool.routing(old)


def test_pages_are_refused_from_the_moment_another_version_claims_them() -> None:
    rooms = Rooms(2)
    gone = rooms.load("1", 16)
    staged = rooms.slots.stage(VersionKey("t", "2"), wanted=(1, 0), scale=1.0)
    rooms.pool.claim(staged)
    with pytest.raises(StalePages):
        rooms.pool.routing(gone)


def test_control_without_stamps_a_stale_page_list_would_read_anothers_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AdapterPool, "claim", lambda self, staged: None)
    rooms = Rooms(2)
    gone = rooms.load("1", 16)
    rooms.load("2", 16)
    gone.stamp = 0
    assert rooms.pool.routing(gone).pages == gone.pages
    assert not rooms.holds(gone, rooms.host("1", 16))


def test_a_host_copy_of_another_size_is_refused() -> None:
    rooms = Rooms()
    staged = rooms.slots.stage(VersionKey("t", "1"), wanted=(1, 1), scale=1.0)
    with pytest.raises(ValueError, match="zip"):
        rooms.pool.write(staged, rooms.host("1", 16))

"""One sweep over many cold adapters leaves the hot set where it is."""

from __future__ import annotations

import pytest

from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.recency import Recency
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, VersionKey

ROOM = 20
HOT = [f"hot{number}" for number in range(10)]
COLD = [f"cold{number}" for number in range(200)]


def key_of(name: str) -> VersionKey:
    return VersionKey("t", name)


def serve_all(table: SlotTable, trace: list[str]) -> int:
    """Run one request after the other; how many found their version resident."""
    hits = 0
    for name in trace:
        key = key_of(name)
        if table.resident(key) is None:
            table.activate(table.stage(key, wanted=[1], scale=1.0))
        else:
            hits += 1
        table.release(table.lease(key))
        table.check_integrity()
    return hits


def hits_after_a_sweep() -> int:
    table = SlotTable(PageAllocator([ROOM]))
    serve_all(table, [*HOT, *HOT, *COLD])
    return serve_all(table, HOT)


def test_a_sweep_over_cold_adapters_evicts_none_of_the_hot_set() -> None:
    assert hits_after_a_sweep() == len(HOT)


def test_control_plain_lru_loses_the_whole_hot_set_to_the_same_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Recency, "used_again", Recency.used)
    assert hits_after_a_sweep() == 0


def test_a_set_that_was_hot_once_makes_way_for_the_one_that_is_hot_now() -> None:
    table = SlotTable(PageAllocator([ROOM]))
    serve_all(table, HOT * 2)
    new = [f"new{number}" for number in range(15)]
    serve_all(table, new * 6)
    assert serve_all(table, new) == len(new)


def test_the_next_version_of_a_hot_name_is_as_safe_from_a_sweep_as_the_one_before() -> None:
    table = SlotTable(PageAllocator([ROOM]))
    serve_all(table, ["v1", "v1"])
    table.serve(Entry("t", "anna", "v1", 1, key_of("v1")))
    table.activate(table.stage(key_of("v2"), wanted=[1], scale=1.0))
    table.serve(Entry("t", "anna", "v2", 2, key_of("v2")))
    serve_all(table, COLD)
    assert table.resident(key_of("v2")) is not None
    assert table.resident(key_of("v1")) is None


def test_what_comes_back_soon_after_it_was_let_go_is_proved() -> None:
    order: Recency[str] = Recency(10)
    order.add("a", 1)
    order.add("b", 1)
    order.remove("a")
    order.add("a", 1)
    assert list(order) == ["b", "a"]
    order.add("c", 1)
    assert list(order) == ["b", "c", "a"]
    order.check_integrity()


def held(table: SlotTable, *names: str) -> None:
    for name in names:
        table.activate(table.stage(key_of(name), wanted=[1], scale=1.0))
        table.lease(key_of(name))


def test_a_newcomer_leaves_the_headroom_and_the_next_version_of_a_served_name_takes_it() -> None:
    table = SlotTable(PageAllocator([4]))
    held(table, "a", "b", "c")
    assert not table.can_make_room([1], newcomer=True)
    assert table.can_make_room([1])
    assert table.shortfall([1], newcomer=True) == (1,)


def test_without_a_headroom_a_newcomer_takes_the_last_page() -> None:
    table = SlotTable(PageAllocator([4]), headroom=(0,))
    held(table, "a", "b", "c")
    assert table.can_make_room([1], newcomer=True)


def test_a_newcomer_as_large_as_the_pool_is_taken_when_all_is_idle() -> None:
    table = SlotTable(PageAllocator([4]), headroom=(3,))
    serve_all(table, ["a", "b"])
    assert table.can_make_room([4], newcomer=True)


def test_a_pinned_version_is_neither_evicted_nor_drained_for_others() -> None:
    table = SlotTable(PageAllocator([4]))
    serve_all(table, ["a"])
    assert table.can_pin(key_of("a"))
    table.pin(key_of("a"))
    serve_all(table, COLD)
    assert table.resident(key_of("a")) is not None
    table.lease(key_of("a"))
    assert table.drainable(1.0) == []
    assert table.unpin(key_of("a"))
    assert not table.unpin(key_of("a"))


def test_a_pinned_name_keeps_what_it_serves_from_version_to_version() -> None:
    table = SlotTable(PageAllocator([4]))
    serve_all(table, ["v1", "v2"])
    table.serve(Entry("t", "anna", "v1", 1, key_of("v1")))
    table.pin_name("t", "anna")
    table.serve(Entry("t", "anna", "v2", 2, key_of("v2")))
    serve_all(table, COLD)
    assert table.is_pinned(key_of("v2"))
    assert table.resident(key_of("v1")) is None
    table.forget("t", "anna")
    serve_all(table, [*COLD, *COLD])
    assert table.resident(key_of("v2")) is None


def test_pins_that_would_leave_no_room_for_another_version_and_its_swap_are_not_granted() -> None:
    table = SlotTable(PageAllocator([4]))
    serve_all(table, ["a", "b", "c"])
    for name in "ab":
        assert table.can_pin(key_of(name))
        table.pin(key_of(name))
    assert not table.can_pin(key_of("c"))


def test_pages_that_could_not_be_wiped_are_never_handed_out_again() -> None:
    table = SlotTable(PageAllocator([2]))
    staged = table.stage(key_of("a"), wanted=[1], scale=1.0)
    table.condemn(staged)
    serve_all(table, COLD)
    assert not table.can_make_room([2])
    table.check_integrity()

"""Places go to whom is used most, change hands rarely, and are never more than there are."""

from __future__ import annotations

import random

from inference_node.telemetry.shortlist import Shortlist


class Desk:
    def __init__(self, places: int) -> None:
        self.now = 0.0
        self.dropped: list[str] = []
        self.list: Shortlist[str] = Shortlist(
            places, clock=lambda: self.now, on_dropped=self.dropped.append, period=10.0
        )

    def use(self, key: str, times: int = 1) -> bool:
        for _ in range(times):
            self.list.use(key)
        return key in self.list

    def turn(self) -> None:
        """Until places are given anew, with the next use."""
        self.now += 10.0


def test_who_comes_first_has_a_place_while_there_is_one() -> None:
    desk = Desk(2)
    assert [desk.use(key) for key in "abc"] == [True, True, False]


def test_a_newcomer_that_is_used_twice_as_much_takes_the_place_of_the_least_used() -> None:
    desk = Desk(2)
    desk.use("hot", 9)
    desk.use("cold", 3)
    desk.use("rising", 7)
    desk.turn()
    assert desk.use("rising")
    assert desk.dropped == ["cold"]
    assert desk.use("hot")
    assert not desk.use("cold")


def test_places_do_not_change_hands_for_a_little_more_use() -> None:
    desk = Desk(1)
    desk.use("first", 5)
    desk.use("second", 10)
    desk.turn()
    assert not desk.use("second")
    assert desk.dropped == []


def test_what_was_hot_long_ago_makes_way() -> None:
    desk = Desk(1)
    desk.use("once", 1000)
    for _ in range(3):
        desk.turn()
        desk.use("now", 3)
    assert desk.use("now")
    assert desk.dropped == ["once"]


def test_no_places_means_nobody_is_listed() -> None:
    desk = Desk(0)
    assert not desk.use("a", 5)
    desk.turn()
    assert not desk.use("a", 5)


def test_a_flood_of_names_is_not_remembered() -> None:
    desk = Desk(4)
    rng = random.Random(1)
    for number in range(20_000):
        desk.use(f"flood{number}" if rng.random() < 0.5 else f"known{number % 3}")
        desk.now += 0.01
        desk.list.check_integrity()
    assert all(f"known{number}" in desk.list for number in range(3))

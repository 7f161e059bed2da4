"""A swap finds the room that newcomers leave, and every claim waits in one place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inference_node.errors import (
    PoolFull,
)
from tests.inference_node.engine.scripted_admission import ScriptedAdmission, target


def full_but_for_the_headroom(desk: ScriptedAdmission) -> list[str]:
    """Requests of other adapters hold all that newcomers may have."""
    names = []
    while True:
        name = f"n{len(names)}"
        sequence = desk.ask(name)
        desk.resolve(target(name))
        desk.fetched()
        if not desk.loader.fills:
            desk.admission.withdraw(sequence)
            return names
        desk.filled()
        names.append(name)


def test_newcomers_leave_room_for_a_swap_and_the_swap_takes_it() -> None:
    desk = ScriptedAdmission(pages=8)
    desk.load(target("ada", 1))
    assert len(full_but_for_the_headroom(desk)) == 6
    waiting = desk.ask("late")
    desk.resolve(target("late"))
    desk.fetched()
    assert desk.loader.fills == []
    desk.learn("ada", 2)
    desk.fetched()
    desk.filled()
    assert desk.serves("ada") == 2
    assert waiting.lease is None


def test_control_without_headroom_the_swap_finds_no_room() -> None:
    desk = ScriptedAdmission(pages=8, headroom=0)
    desk.load(target("ada", 1))
    assert len(full_but_for_the_headroom(desk)) == 7
    desk.learn("ada", 2)
    desk.fetched()
    assert desk.loader.fills == []
    assert desk.serves("ada") == 1


def test_a_swap_that_finds_no_room_waits_while_the_old_version_serves_and_others_pass_it() -> None:
    desk = ScriptedAdmission(pages=8)
    held = [desk.load(target(name, 1), pages=2) for name in ("ada", "ben")]
    desk.learn("ben", 2)
    desk.fetched(6)
    desk.learn("ada", 2)
    desk.fetched(2)
    desk.filled()
    assert (desk.serves("ada"), desk.serves("ben")) == (2, 1)
    arrivals = desk.admission.arrivals
    assert [arrivals.is_swap(arrival) for arrival in arrivals.coming().values()] == [True]
    served = desk.ask("ben")
    desk.resolve(target("ben", 2))
    assert served.entry is not None
    assert served.entry.gen == 1, "who does not insist is served by the old version"
    for sequence in (*held, served):
        desk.end(sequence)
    desk.filled()
    assert desk.serves("ben") == 2


def test_newcomers_leave_a_large_swap_its_room_from_when_it_is_ready() -> None:
    desk = ScriptedAdmission(pages=8)
    holders = [desk.load(target(name, 1)) for name in ("ada", "ben", "cia")]
    desk.learn("ada", 2)
    desk.fetched(6)
    assert desk.loader.fills == [], "three versions of one page are held"
    desk.ask("new")
    desk.resolve(target("new"))
    desk.fetched()
    assert desk.loader.fills == [], "it would take what the swap waits for"
    desk.end(holders[1])
    desk.filled()
    assert desk.serves("ada") == 2


def test_a_newcomer_that_pins_leave_no_room_for_holds_up_no_other() -> None:
    desk = ScriptedAdmission(pages=8, headroom=0)
    for name in ("ada", "ben"):
        held = desk.load(target(name), pages=2)
        assert held.entry is not None
        desk.slots.pin(held.entry.key)
    large = desk.ask("large")
    desk.resolve(target("large"))
    desk.fetched(5)
    assert desk.loader.fills == []
    desk.load(target("small"))
    desk.now += 100.0
    drained: list[object] = []
    desk.admission.relieve(desk.ready, drained.append)
    assert drained == [], "nobody makes way in vain"
    assert isinstance(desk.admission.withdraw(large), PoolFull)


def lost(desk: ScriptedAdmission) -> None:
    """A request waits for a version on its way, which is then taken for granted."""
    desk.ask("ada")
    desk.resolve(target("ada"))


def lose_the_claim(desk: ScriptedAdmission) -> None:
    lost(desk)
    next(iter(desk.admission.arrivals.coming().values())).claims.clear()


def wait_twice(desk: ScriptedAdmission) -> None:
    lost(desk)
    arrival = next(iter(desk.admission.arrivals.coming().values()))
    arrival.claims *= 2


def lose_the_arrival(desk: ScriptedAdmission) -> None:
    lost(desk)
    desk.fetched()
    desk.admission.arrivals._coming.clear()


def lose_what_is_being_filled(desk: ScriptedAdmission) -> None:
    desk.learn("ada", 1)
    desk.admission.arrivals.bring(target("ada"))
    desk.fetched()
    desk.admission.arrivals._coming.clear()


def step_back(desk: ScriptedAdmission) -> None:
    desk.load(target("ada", 3))
    desk.admission.names._reached["t", "ada"] = 4


def forget_the_look_up(desk: ScriptedAdmission) -> None:
    desk.ask("ada")
    desk.admission.lookups._running.clear()


@pytest.mark.parametrize(
    "break_it",
    [
        lose_the_claim,
        wait_twice,
        lose_the_arrival,
        lose_what_is_being_filled,
        step_back,
        forget_the_look_up,
    ],
)
def test_control_the_books_show_a_claim_that_would_never_be_answered_and_a_step_back(
    break_it: Callable[[ScriptedAdmission], None],
) -> None:
    desk = ScriptedAdmission()
    break_it(desk)
    with pytest.raises(AssertionError):
        desk.check()

from __future__ import annotations

import random

import pytest

from tests.chaos.linearizability import Answer, Operation, is_linearizable


def read(gen: int, invoked: float, returned: float, vdig: str = "") -> Operation:
    return Operation(
        client="reader",
        answer=Answer.READ,
        invoked=invoked,
        returned=returned,
        gen=gen,
        vdig=vdig or (f"d{gen}" if gen else ""),
    )


def publish(
    answer: Answer, expected: int, invoked: float, returned: float, vdig: str = ""
) -> Operation:
    return Operation(
        client="publisher",
        answer=answer,
        invoked=invoked,
        returned=returned,
        gen=expected + 1 if answer is Answer.OK else 0,
        vdig=vdig or f"d{expected + 1}",
        expected=expected,
    )


def test_a_sequential_history_is_linearizable() -> None:
    assert is_linearizable(
        [read(0, 0, 1), publish(Answer.OK, 0, 2, 3), read(1, 4, 5), publish(Answer.OK, 1, 6, 7)]
    )


def test_a_read_beside_a_publish_may_see_either_side_of_it() -> None:
    for gen in (0, 1):
        assert is_linearizable([publish(Answer.OK, 0, 0, 10), read(gen, 4, 5)])


def test_a_stale_read_is_found() -> None:
    assert not is_linearizable([publish(Answer.OK, 0, 0, 1), read(0, 2, 3)])


def test_a_lost_update_is_found() -> None:
    both = [publish(Answer.OK, 0, 0, 10, "mine"), publish(Answer.OK, 0, 0, 10, "yours")]
    assert not is_linearizable(both)
    assert not is_linearizable([publish(Answer.OK, 0, 0, 1, "mine"), read(1, 2, 3, "yours")])


def test_a_read_that_goes_back_is_found() -> None:
    landing = publish(Answer.OK, 0, 0, 10)
    assert is_linearizable([landing, read(0, 1, 2), read(1, 3, 4)])
    assert not is_linearizable([landing, read(1, 1, 2), read(0, 3, 4)])


def test_a_conflict_where_the_expected_generation_stood_is_found() -> None:
    assert not is_linearizable([publish(Answer.CONFLICT, 0, 0, 1)])
    assert is_linearizable([publish(Answer.OK, 0, 0, 5), publish(Answer.CONFLICT, 0, 1, 6)])


def test_an_unknown_publish_may_land_late_or_never_but_only_once() -> None:
    unknown = publish(Answer.UNKNOWN, 0, 0, 1)
    assert is_linearizable([unknown, read(0, 2, 3)])
    assert is_linearizable([unknown, read(0, 2, 3), read(1, 4, 5)])
    assert not is_linearizable([unknown, read(0, 2, 3), read(1, 4, 5), read(0, 6, 7)])
    assert not is_linearizable([unknown, publish(Answer.OK, 0, 2, 3, "o"), read(2, 4, 5, "d1")])


def test_a_failed_publish_may_fill_its_slot_but_never_serve() -> None:
    failed = [publish(Answer.OK, 0, 0, 1), publish(Answer.FAILED, 1, 2, 3)]
    assert is_linearizable([*failed, read(1, 4, 5)])
    assert is_linearizable([*failed, read(2, 4, 5, "d1")])
    assert not is_linearizable([*failed, read(2, 4, 5, "d2")])
    assert not is_linearizable([*failed, read(1, 4, 5), read(2, 6, 7, "d1")])


def simulated(seed: int, operations: int = 40, clients: int = 8) -> list[Operation]:
    """A history around instants that are known to explain it."""
    rng = random.Random(seed)
    gen, history = 0, []
    for instant in range(operations):
        before, after = instant - rng.random() * clients, instant + rng.random() * clients
        if rng.random() < 0.4:
            history.append(publish(Answer.OK, gen, before, after))
            gen += 1
        else:
            history.append(read(gen, before, after))
    return history


@pytest.mark.parametrize("seed", range(20))
def test_forty_operations_of_eight_clients_are_explained(seed: int) -> None:
    history = simulated(seed)
    assert is_linearizable(history)
    last = max(history, key=lambda one: one.invoked)
    late = read(0, last.returned + 100, last.returned + 101)
    assert not is_linearizable([*history, late])

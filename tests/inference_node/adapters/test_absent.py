"""What was absent is remembered ever longer, within a bound: a flood pushes out itself alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_store.layout import AdapterRef
from inference_node.adapters import absent as absent_module
from inference_node.adapters.absent import AbsentNames

ADA = AdapterRef("t", "ada")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def remembered_for(names: AbsentNames, clock: Clock, ref: AdapterRef = ADA) -> float:
    """Seconds from now until the store is asked again."""
    start = clock.now
    while names.recalls(ref, 0):
        clock.now += 0.5
    return clock.now - start


def test_what_stays_absent_is_asked_for_after_2_s_and_then_ever_more_rarely_up_to_60_s() -> None:
    clock = Clock()
    names = AbsentNames(clock=clock)
    periods = []
    for _ in range(7):
        names.note(ADA, 0)
        periods.append(remembered_for(names, clock))
    assert periods == [2, 4, 8, 16, 32, 60, 60]


def test_what_nobody_asked_for_in_a_long_time_starts_anew() -> None:
    clock = Clock()
    names = AbsentNames(clock=clock)
    for _ in range(3):
        names.note(ADA, 0)
        clock.now += 8.0
    clock.now += 61.0
    names.note(ADA, 0)
    assert remembered_for(names, clock) == 2.0


def test_news_of_a_name_ends_what_is_remembered_of_it_in_every_form_and_of_no_other() -> None:
    names = AbsentNames(clock=Clock())
    forms = [ADA, AdapterRef("t", "ada", label="v9"), AdapterRef("t", "ada", vdig="0" * 64)]
    others = [AdapterRef("t", "ben"), AdapterRef("u", "ada")]
    for ref in forms + others:
        names.note(ref, 0)
    names.forget("t", "ada")
    assert [names.recalls(ref, 0) for ref in forms + others] == [False] * 3 + [True] * 2
    names.forget_all()
    assert not any(names.recalls(ref, 0) for ref in others)
    assert len(names) == 0


def test_who_asks_for_a_higher_generation_than_was_asked_for_is_not_put_off() -> None:
    names = AbsentNames(clock=Clock())
    names.note(ADA, 3)
    assert names.recalls(ADA, 3)
    assert not names.recalls(ADA, 4)


def test_a_flood_of_one_tenant_forgets_its_own_names_first() -> None:
    names = AbsentNames(clock=Clock(), capacity=100)
    quiet = [AdapterRef("quiet", f"q{number}") for number in range(30)]
    for ref in quiet:
        names.note(ref, 0)
    for number in range(1000):
        names.note(AdapterRef("loud", f"l{number}"), 0)
    names.check_integrity()
    assert len(names) == 100
    assert all(names.recalls(ref, 0) for ref in quiet)


def test_control_forgetting_the_oldest_of_all_lets_a_flood_push_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(absent_module, "max", lambda of, key: next(iter(of)), raising=False)
    with pytest.raises(AssertionError):
        test_a_flood_of_one_tenant_forgets_its_own_names_first()


REFS = st.builds(
    AdapterRef,
    st.sampled_from(("t", "u")),
    st.sampled_from(("a", "b", "c")),
    label=st.sampled_from(("", "v1")),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("note", "forget", "wait")), REFS), max_size=60))
def test_no_order_of_calls_breaks_the_bound_or_the_indices(
    calls: list[tuple[str, AdapterRef]],
) -> None:
    clock = Clock()
    names = AbsentNames(clock=clock, capacity=5)
    for call, ref in calls:
        if call == "note":
            names.note(ref, 0)
            assert names.recalls(ref, 0)
        elif call == "forget":
            names.forget(ref.tenant, ref.adapter)
            assert not names.recalls(ref, 0)
        else:
            clock.now += 1.5
        names.check_integrity()

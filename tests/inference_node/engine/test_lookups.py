"""A flood of references costs few requests to the store, and nobody is told what is not true."""

from __future__ import annotations

import pytest

from inference_node.adapters.absent import AbsentNames
from inference_node.adapters.outcomes import no_such_adapter
from inference_node.adapters.reports import Heard, Learned
from inference_node.engine import lookups as lookups_module
from inference_node.engine.lookups import Lookup, Lookups
from inference_node.errors import AdapterNotFound, StaleNode, StoreDown
from tests.inference_node.engine.scripted_admission import ScriptedAdmission, target

ABSENT = no_such_adapter("ghost")
AWAY = StoreDown("the store does not answer", retry_after=1.0)


def asked(desk: ScriptedAdmission) -> int:
    """Look-ups that nobody has answered yet."""
    return len(desk.loader.lookups)


def test_a_hundred_requests_at_once_for_an_unknown_name_ask_the_store_once() -> None:
    desk = ScriptedAdmission()
    waiting = [desk.ask("ghost") for _ in range(100)]
    assert asked(desk) == 1
    desk.resolve(ABSENT)
    assert asked(desk) == 0
    errors = [desk.failed[sequence] for sequence in waiting]
    assert all(type(error) is AdapterNotFound for error in errors)
    assert {(str(error), error.hint) for error in errors} == {(str(ABSENT), ABSENT.hint)}


def flood(desk: ScriptedAdmission, *, seconds: float) -> int:
    """Ask for an unknown name ten times a second; how often the store was asked."""
    count = 0
    for _ in range(int(seconds * 10)):
        sequence = desk.ask("ghost")
        if asked(desk):
            count += 1
            desk.resolve(ABSENT)
        assert str(desk.failed[sequence]) == str(ABSENT)
        desk.now += 0.1
    return count


def test_a_name_asked_for_again_and_again_costs_ever_fewer_requests() -> None:
    assert flood(ScriptedAdmission(), seconds=120) == 6  # at 0, 2, 6, 14, 30 and 62 s


def test_control_without_the_memory_every_request_costs_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AbsentNames, "note", lambda self, ref, least: None)
    assert flood(ScriptedAdmission(), seconds=12) == 120


def test_news_of_a_name_makes_it_visible_at_once() -> None:
    desk = ScriptedAdmission()
    flood(desk, seconds=7)
    desk.admission.on_event(Heard(frozenset({("t", "ghost")})))
    sequence = desk.ask("ghost")
    desk.resolve(target("ghost"))
    desk.fetched()
    desk.filled()
    assert sequence in desk.ready


@pytest.mark.parametrize(
    "news", [Heard(None), Learned("t", "ghost", 2, None)], ids=["hints were lost", "learned"]
)
def test_any_news_that_may_be_of_the_name_makes_the_store_be_asked(news: Heard | Learned) -> None:
    desk = ScriptedAdmission()
    flood(desk, seconds=3)
    desk.admission.on_event(news)
    desk.ask("ghost")
    assert asked(desk) == 1


def test_news_of_another_name_or_tenant_changes_nothing() -> None:
    desk = ScriptedAdmission()
    flood(desk, seconds=3)
    desk.admission.on_event(Heard(frozenset({("t", "other"), ("u", "ghost")})))
    desk.ask("ghost")
    assert asked(desk) == 0


def absent_while_published(desk: ScriptedAdmission) -> bool:
    """News comes while a look-up that began before it runs; whether the next request asks."""
    desk.ask("ghost")
    desk.admission.on_event(Heard(frozenset({("t", "ghost")})))
    desk.resolve(ABSENT)
    desk.ask("ghost")
    return asked(desk) == 1


def test_an_answer_from_before_the_news_is_not_remembered() -> None:
    assert absent_while_published(ScriptedAdmission())


def test_control_an_answer_that_no_news_puts_in_doubt_hides_the_publish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Lookups, "heard", lambda self, names: [self._absent.forget(*name) for name in names]
    )
    assert not absent_while_published(ScriptedAdmission())


def test_without_news_a_publish_is_visible_after_at_most_the_remembered_time() -> None:
    desk = ScriptedAdmission()
    flood(desk, seconds=70)
    desk.now += 60.0
    desk.ask("ghost")
    assert asked(desk) == 1


def test_who_knows_of_a_generation_is_not_told_what_was_true_before_it() -> None:
    desk = ScriptedAdmission()
    flood(desk, seconds=1)
    sequence = desk.ask("ghost", min_generation=1)
    desk.resolve(target("ghost", 1))
    desk.fetched()
    desk.filled()
    assert sequence in desk.ready
    assert desk.ask("ghost") is not None
    assert asked(desk) == 1, "the name is served, and its check is old: the store is asked"


def test_an_absent_version_says_nothing_of_its_adapter_nor_the_other_way_round() -> None:
    desk = ScriptedAdmission()
    desk.ask("ada@v9")
    desk.resolve(no_such_adapter("ada@v9"))
    desk.ask("ada@v9", min_generation=7)
    assert asked(desk) == 0, "what a version is does not depend on the generation"
    desk.ask("ada")
    desk.ask("ada@v1")
    assert asked(desk) == 2


def test_a_log_below_the_generation_asked_for_is_not_taken_for_absent() -> None:
    desk = ScriptedAdmission()
    for _ in range(2):
        desk.ask("ada", min_generation=5)
        assert asked(desk) == 1
        desk.resolve(StaleNode("not yet", retry_after=1.0))


def test_who_asks_while_a_look_up_runs_gets_an_answer_that_began_after_it_asked() -> None:
    desk = ScriptedAdmission()
    early = desk.ask("ada")
    late = [desk.ask("ada") for _ in range(5)]
    desk.resolve(target("ada", 1))
    assert asked(desk) == 1, "one more for all that came late"
    desk.resolve(target("ada", 2))
    assert early.entry is not None
    assert early.entry.gen == 1
    for sequence in late:
        assert sequence.entry is not None
        assert sequence.entry.gen == 2


def test_control_sharing_a_look_up_that_runs_answers_with_what_was_before() -> None:
    desk = ScriptedAdmission()
    desk.ask("ada")
    late = desk.ask("ada")
    lookup: Lookup = next(iter(desk.admission.lookups._running.values()))
    lookup.claims += lookup.late
    lookup.late.clear()
    desk.resolve(target("ada", 1))
    assert late.entry is not None
    assert late.entry.gen == 1


def test_a_request_that_ends_while_it_is_looked_up_leaves_nothing_behind() -> None:
    desk = ScriptedAdmission()
    first, second = desk.ask("ada"), desk.ask("ada")
    desk.admission.withdraw(first)
    desk.admission.withdraw(second)
    desk.resolve(target("ada"))
    assert asked(desk) == 0
    assert (desk.ready, desk.failed, desk.loader.fetches) == ([], {}, [])
    desk.check()


def take_the_store_away(desk: ScriptedAdmission) -> None:
    for number in range(lookups_module.TOLERATED + 1):
        desk.ask(f"cold{number}")
        desk.resolve(AWAY)


def test_while_the_store_is_away_residents_serve_without_asking_it() -> None:
    desk = ScriptedAdmission()
    desk.end(desk.load(target("ada")))
    take_the_store_away(desk)
    served = [desk.ask("ada") for _ in range(50)]
    assert asked(desk) == 0
    assert all(sequence in desk.ready for sequence in served)
    cold = desk.ask("cold")
    assert isinstance(desk.failed[cold], StoreDown)
    assert 0 < (desk.failed[cold].retry_after or 0) <= 10


@pytest.mark.parametrize(("limit", "refused"), [(None, False), (600.0, False), (30.0, True)])
def test_a_resident_serves_unconfirmed_for_as_long_as_the_operator_allows(
    limit: float | None, refused: bool
) -> None:
    desk = ScriptedAdmission(refuse_stale_after=limit)
    desk.end(desk.load(target("ada")))
    desk.now += 31.0
    for name in ("ada", "ada@v1"):
        sequence = desk.ask(name)
        desk.resolve(AWAY)
        assert (sequence in desk.failed) == refused
        assert (sequence in desk.ready) != refused


def test_one_look_up_at_a_time_finds_out_whether_the_store_is_back() -> None:
    desk = ScriptedAdmission()
    take_the_store_away(desk)
    asks = 0
    for _ in range(300):
        desk.ask("cold")
        desk.ask("colder")
        assert asked(desk) <= 1
        if asked(desk):
            asks += 1
            desk.resolve(AWAY)
        desk.now += 0.1
    assert 3 <= asks <= 6, "ever more rarely, at most 10 s apart"
    desk.now += 10.0
    back = desk.ask("cold")
    desk.resolve(target("cold"))
    assert back not in desk.failed
    desk.ask("colder")
    desk.ask("coldest")
    assert asked(desk) == 2, "it is back for everybody"


def test_a_single_failure_holds_nobody_up() -> None:
    desk = ScriptedAdmission()
    desk.ask("cold")
    desk.resolve(AWAY)
    desk.ask("cold")
    assert asked(desk) == 1


def test_a_probe_whose_request_ended_still_finds_the_store() -> None:
    desk = ScriptedAdmission()
    take_the_store_away(desk)
    desk.now += 10.0
    probe = desk.ask("cold")
    desk.admission.withdraw(probe)
    desk.resolve(target("cold"))
    desk.ask("colder")
    assert asked(desk) == 1

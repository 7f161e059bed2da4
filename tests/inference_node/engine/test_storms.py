"""A storm of publishes costs few fetches, and whatever order they end in no name goes back."""

from __future__ import annotations

import random

import pytest

from inference_node.engine.arrivals import Arrivals
from inference_node.engine.names import Names
from inference_node.errors import (
    EngineFailure,
    StoreDown,
)
from tests.inference_node.engine.scripted_admission import ScriptedAdmission, target

AWAY = StoreDown("the store does not answer", retry_after=1.0)
BROKEN = EngineFailure("loading the adapter failed")


def storm(desk: ScriptedAdmission, newest: int) -> list[int]:
    """Publish while the first of them is fetched; generations that were fetched in the end."""
    desk.end(desk.load(target("ada", 1)))
    fetched = []
    for gen in range(2, newest + 1):
        desk.learn("ada", gen)
    while desk.loader.fetches:
        fetched.append(desk.loader.fetches[0].entry.gen)
        desk.fetched()
        while desk.loader.fills:
            desk.filled()
    assert desk.serves("ada") == newest
    return fetched


def test_of_a_storm_of_publishes_the_one_that_is_fetched_and_the_newest_are_fetched() -> None:
    assert storm(ScriptedAdmission(), 50) == [2, 50]


def test_a_fetch_that_has_not_begun_gives_way_to_a_newer_one() -> None:
    desk = ScriptedAdmission()
    desk.loader.begun = False
    assert storm(desk, 50) == [50]


def test_control_fetching_whatever_is_learned_fetches_every_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Arrivals, "_must_wait", lambda self, entry: False)
    assert storm(ScriptedAdmission(), 50) == list(range(2, 51))


def test_a_storm_on_one_name_holds_up_no_other() -> None:
    desk = ScriptedAdmission()
    for name in ("ada", "ben"):
        desk.end(desk.load(target(name, 1)))
    for gen in range(2, 9):
        desk.learn("ada", gen)
    desk.learn("ben", 2)
    assert desk.fetching() == [("ada", 2), ("ben", 2)]


def test_a_request_for_a_generation_does_not_wait_for_the_fetch_of_an_older_one() -> None:
    desk = ScriptedAdmission()
    desk.end(desk.load(target("ada", 1)))
    desk.learn("ada", 2)
    desk.learn("ada", 3)
    urgent = desk.ask("ada", min_generation=3)
    desk.resolve(target("ada", 3))
    assert desk.fetching() == [("ada", 2), ("ada", 3)]
    desk.fetched(at=1)
    desk.filled()
    assert urgent.lease is not None
    assert desk.serves("ada") == 3
    desk.fetched()
    assert desk.loader.fills == [], "what was overtaken is skipped"
    assert desk.serves("ada") == 3


def serve_in_any_order(seed: int) -> list[int]:
    """Publishes, fetches, copies and requests in a random order; what the name served, in turn."""
    rng, desk = random.Random(seed), ScriptedAdmission(pages=6)
    served = [1]
    desk.end(desk.load(target("ada", 1)))
    newest = 1
    for _ in range(60):
        roll = rng.random()
        if roll < 0.35:
            newest += 1
            desk.learn("ada", newest)
        elif roll < 0.45:
            desk.ask("ada", min_generation=newest)
            desk.resolve(target("ada", newest))
        elif roll < 0.55:
            desk.now += rng.choice((0.5, 5.0))
            desk.admission.tick()
        elif roll < 0.75 and desk.loader.fetches:
            at = rng.randrange(len(desk.loader.fetches))
            desk.fetched(rng.choice((1, 1, 1, AWAY, BROKEN)), at=at)
        elif roll < 0.95 and desk.loader.fills:
            desk.filled(rng.choice((None, None, BROKEN)), wiped=rng.random() < 0.9)
        elif desk.ready:
            desk.end(desk.ready.pop(rng.randrange(len(desk.ready))))
        gen = desk.serves("ada")
        if gen is not None and gen != served[-1]:
            served.append(gen)
    return served


def test_whatever_the_order_a_name_never_goes_back() -> None:
    for seed in range(60):
        served = serve_in_any_order(seed)
        assert served == sorted(served), seed


def test_control_serving_what_finishes_last_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def latest(self: Names, entry: object) -> None:
        self._slots._serving["t", "ada"] = entry  # type: ignore[assignment]
        self._reached["t", "ada"] = entry.gen  # type: ignore[attr-defined]

    monkeypatch.setattr(Names, "serve", latest)
    monkeypatch.setattr(Names, "is_news", lambda self, entry: True)
    with pytest.raises(AssertionError):
        test_whatever_the_order_a_name_never_goes_back()

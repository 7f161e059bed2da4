"""News of served names is followed at once and asked for in turn, and one failure ends nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from adapter_store.coordination import Hint
from adapter_store.errors import IntegrityError, NotFound, StoreUnavailable
from inference_node.adapters.loader import Loader
from inference_node.adapters.watcher import Watcher

PATIENCE = 20.0


@dataclass
class Clock:
    """Time that moves when told."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Looks:
    """Stands in for the Loader: notes what was looked at, raises what it is told."""

    seen: list[tuple[str, str, int]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    heard: list[frozenset[tuple[str, str]] | None] = field(default_factory=list)

    def hear(self, names: frozenset[tuple[str, str]] | None) -> None:
        self.heard.append(names)

    def look(self, tenant: str, adapter: str, known_gen: int) -> None:
        self.seen.append((tenant, adapter, known_gen))
        if self.failures:
            raise self.failures.pop(0)


class ScriptedHints:
    """Hands out one scripted round a poll; after the last one waits until the test is done."""

    def __init__(self, *rounds: Callable[[ScriptedHints], Sequence[Hint]]) -> None:
        self.healthy = True
        self.gaps = 0
        self._rounds = list(rounds)
        self.done = threading.Event()
        self.over = threading.Event()

    def poll(self, timeout_s: float, /) -> Sequence[Hint]:
        if self._rounds:
            return self._rounds.pop(0)(self)
        self.done.set()
        assert self.over.wait(PATIENCE)
        return ()


@dataclass
class Watch:
    """A watcher with its surroundings."""

    clock: Clock = field(default_factory=Clock)
    looks: Looks = field(default_factory=Looks)

    def run(
        self,
        *rounds: Callable[[ScriptedHints], Sequence[Hint]],
        names: Sequence[tuple[str, str, int]],
        checked: bool = True,
    ) -> list[tuple[str, str, int]]:
        """Let the real thread go through the rounds; what it looked at after each."""
        hints = ScriptedHints(*rounds)
        watcher = self.watcher(hints)
        watcher.watch(names)
        if checked:
            for tenant, adapter, _ in names:
                watcher.note_checked(tenant, adapter)
        watcher.start()
        finished = hints.done.wait(PATIENCE)
        hints.over.set()
        watcher.stop()
        assert finished, "the watcher's thread ended early"
        return self.looks.seen

    def watcher(self, hints: ScriptedHints | None) -> Watcher:
        return Watcher(
            cast(Loader, self.looks),
            hints,
            poll_seconds=30.0,
            poll_seconds_without_hints=5.0,
            clock=self.clock,
        )

    def after(
        self, seconds: float, *hints: Hint, **changes: Any
    ) -> Callable[[ScriptedHints], Sequence[Hint]]:
        """A round: time passes, the stream's state changes, hints come."""

        def step(stream: ScriptedHints) -> Sequence[Hint]:
            self.clock.now += seconds
            for name, value in changes.items():
                setattr(stream, name, value)
            return hints

        return step


ANNA, BEN = ("t", "anna", 3), ("t", "ben", 7)
ABOUT_ANNA = Hint("t", "anna", 4)


def test_a_hint_is_followed_at_once_and_only_for_its_name() -> None:
    watch = Watch()
    assert watch.run(watch.after(0, ABOUT_ANNA), names=[ANNA, BEN]) == [ANNA]


def test_hints_of_names_that_are_not_served_are_left_alone() -> None:
    watch = Watch()
    hints = (Hint("t", "else", 1), Hint("other", "anna", 9))
    assert watch.run(watch.after(0, *hints), names=[ANNA]) == []
    told = frozenset({("t", "else"), ("other", "anna")})
    assert watch.looks.heard == [told], "whoever asked for them in vain is told"


def test_many_hints_of_one_name_cost_one_look() -> None:
    watch = Watch()
    hints = [Hint("t", "anna", gen) for gen in range(4, 9)]
    assert watch.run(watch.after(0, *hints), names=[ANNA]) == [ANNA]


def test_when_hints_may_be_lost_every_name_is_looked_at_once() -> None:
    watch = Watch()
    rounds = (watch.after(0, gaps=1), watch.after(0), watch.after(0, gaps=2))
    assert watch.run(*rounds, names=[ANNA, BEN]) == [ANNA, BEN, ANNA, BEN]
    assert watch.looks.heard == [None, None], "there may be news of every name"


def test_names_are_polled_slowly_while_the_hints_are_healthy() -> None:
    watch = Watch()
    rounds = (watch.after(29), watch.after(1), watch.after(29), watch.after(1))
    assert watch.run(*rounds, names=[ANNA]) == [ANNA, ANNA]


def test_names_are_polled_quickly_while_the_hints_are_not() -> None:
    watch = Watch()
    rounds = (
        watch.after(4, healthy=False),
        watch.after(1),
        watch.after(5),
        watch.after(29, healthy=True),
    )
    assert watch.run(*rounds, names=[ANNA]) == [ANNA, ANNA]


def test_a_name_never_checked_is_looked_at_at_once() -> None:
    watch = Watch()
    rounds = (watch.after(0), watch.after(0))
    assert watch.run(*rounds, names=[ANNA], checked=False) == [ANNA]


def test_a_look_that_failed_is_made_again_and_does_not_end_the_watch() -> None:
    watch = Watch()
    failures: list[Exception] = [
        StoreUnavailable("away"),
        NotFound("gone"),
        IntegrityError("odd"),
        RuntimeError("x"),
    ]
    watch.looks.failures.extend(failures)
    rounds = [watch.after(30), *(watch.after(0) for _ in range(5))]
    assert watch.run(*rounds, names=[ANNA]) == [ANNA] * 5


def test_without_hints_names_are_polled_quickly_by_the_clock() -> None:
    watch = Watch()
    watcher = watch.watcher(None)
    watcher.watch([ANNA, BEN])
    watcher.note_checked("t", "anna")
    watch.clock.now += 4.9
    watcher.note_checked("t", "ben")
    assert watcher._due(()) == []
    watch.clock.now += 0.2
    assert watcher._due(()) == [("t", "anna")]


def test_a_check_is_remembered_with_its_time_until_the_name_is_no_longer_watched() -> None:
    watch = Watch()
    watcher = watch.watcher(None)
    watcher.watch([ANNA])
    assert watcher.checked_at("t", "anna") is None
    watcher.note_checked("t", "anna")
    assert watcher.checked_at("t", "anna") == watch.clock.now
    watcher.watch([])
    watcher._due(())
    assert watcher.checked_at("t", "anna") is None


def test_a_name_newly_served_is_looked_at_although_it_was_checked_while_it_loaded() -> None:
    watcher = Watch().watcher(None)
    watcher.note_checked("t", "anna")
    watcher.watch([ANNA])
    assert watcher._due(()) == [("t", "anna")]


class Interrupting(str):
    """A tenant's name whose look-up lets another thread's work in between."""

    __slots__ = ("meanwhile",)
    meanwhile: Callable[[], None]

    def __hash__(self) -> int:
        getattr(self, "meanwhile", lambda: None)()
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


@pytest.mark.parametrize("tidy", ["watch", "due"])
def test_a_check_noted_by_one_thread_while_the_other_tidies_up_is_kept(tidy: str) -> None:
    watcher = Watch().watcher(None)
    tenant = Interrupting("t")
    names = [(tenant, "anna", 3), ("t", "ben", 1)]
    watcher.watch(names)
    watcher.note_checked(tenant, "anna")
    tenant.meanwhile = lambda: watcher.note_checked("t", "ben")
    if tidy == "watch":
        watcher.watch(names)
    else:
        watcher._due(())
    assert watcher.checked_at("t", "anna") is not None
    assert watcher.checked_at("t", "ben") is not None

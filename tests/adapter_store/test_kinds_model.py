"""Any sequence of changes leaves what a model of a few lines says it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_store import kinds
from adapter_store.draft import Change, Content
from adapter_store.errors import NotFound, StoreError
from adapter_store.memory import MemoryStore
from adapter_store.record import RecordKind
from tests.adapter_store.publishing import (
    View,
    activate,
    append,
    broken_promises,
    delete,
    publish,
    roll_back,
    split,
    stage,
    view,
)

SEEDS = range(4)
Step = tuple[str, int, int]

steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("publish", "stage", "activate", "activate staged", "split"),
                *("rollback", "rollback to", "delete", "fence"),
            ]
        ),
        st.sampled_from(SEEDS),
        st.integers(1, 3),
    ),
    max_size=14,
)


@dataclass
class Model:
    """What an adapter says, by seeds. None for a step that has nothing to work on."""

    view: View = field(default_factory=View)
    known: set[int] = field(default_factory=set)
    was_active: list[int] = field(default_factory=list)
    """What each record had active, oldest first; a tombstone has nothing."""
    just_activated: bool = False

    def step(self, step: Step) -> View | None:
        name, seed, weight = step
        after = self._after(name, seed, weight)
        if after is None:
            return None
        if after != self.view:
            self.just_activated = name.startswith("activate")
        elif name == "fence":
            self.just_activated = False
        if name in ("publish", "stage"):
            self.known.add(seed)
        self.view = after
        if after.active is not None:
            self.was_active.append(after.active)
        return after

    def _after(self, name: str, seed: int, weight: int) -> View | None:
        now = self.view
        if name == "publish":
            return View(seed)
        if name == "stage":
            return replace(now, staged=seed)
        if not self.known:
            return None
        if name == "activate staged":
            chosen = now.active if now.staged is None and self.just_activated else now.staged
            return None if chosen is None else View(chosen)
        if name in ("activate", "rollback to"):
            return View(seed) if seed in self.known else None
        if name == "rollback":
            return self._before()
        if name == "split":
            other = (seed + 1) % len(SEEDS)
            there = now.active is not None and {seed, other} <= self.known
            return replace(now, split=((weight, seed), (1, other))) if there else None
        return View() if name == "delete" else now

    def _before(self) -> View | None:
        now = self.view
        if now.split:
            return View(now.active)
        before = [seed for seed in self.was_active if seed != now.active]
        return View(before[-1]) if before else None


def take(store: MemoryStore, step: Step) -> object:
    name, seed, weight = step
    label = f"s{seed}"
    acts: dict[str, Callable[[], object]] = {
        "publish": lambda: publish(store, seed, label=label),
        "stage": lambda: stage(store, seed, label=label),
        "activate": lambda: activate(store, label=label),
        "activate staged": lambda: activate(store),
        "rollback": lambda: roll_back(store),
        "rollback to": lambda: roll_back(store, to=label),
        "split": lambda: split(store, {label: weight, f"s{(seed + 1) % len(SEEDS)}": 1}),
        "delete": lambda: delete(store),
        "fence": lambda: append(store),
    }
    return acts[name]()


def differs(sequence: list[Step]) -> str:
    """Where the log and the model part, in words; empty when nowhere."""
    store, model = MemoryStore(), Model()
    for number, step in enumerate(sequence):
        wanted = model.step(step)
        try:
            take(store, step)
            found: View | None = view(store)
        except NotFound:
            found = None
        except StoreError as error:
            return f"step {number} {step}: {error}"
        if found != wanted:
            return f"step {number} {step}: {found}, not {wanted}"
    return "; ".join(broken_promises(store)) if model.known else ""


@given(steps)
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_changes_leaves_what_the_model_says(sequence: list[Step]) -> None:
    assert differs(sequence) == ""


def keeps_staging(content: Content) -> Change:
    return Change(
        kind=RecordKind.PUBLISH,
        contents=(content,),
        draw=lambda before, versions: replace(before, active=versions[0], split=()),
    )


def forgets_split(content: Content) -> Change:
    return Change(
        kind=RecordKind.STAGE,
        contents=(content,),
        draw=lambda before, versions: replace(before, staged=versions[0], split=()),
    )


def keeps_staged() -> Change:
    return Change(
        kind=RecordKind.TOMBSTONE,
        draw=lambda before, versions: replace(before, active=None, split=()),
    )


@pytest.mark.parametrize(
    ("name", "bug", "sequence"),
    [
        ("publish", keeps_staging, [("stage", 1, 1), ("publish", 2, 1)]),
        (
            "stage",
            forgets_split,
            [("publish", 1, 1), ("publish", 2, 1), ("split", 1, 1), ("stage", 3, 1)],
        ),
        ("tombstone", keeps_staged, [("publish", 1, 1), ("stage", 2, 1)]),
    ],
)
def test_a_kind_that_draws_its_record_wrongly_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    bug: Callable[..., Change],
    sequence: list[Step],
) -> None:
    """The control."""
    assert differs([*sequence, ("delete", 1, 1)]) == ""
    monkeypatch.setattr(kinds, name, bug)
    assert differs([*sequence, ("delete", 1, 1)]) != ""

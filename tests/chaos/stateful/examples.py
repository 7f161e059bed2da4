"""Runs the state machine: some examples from one seed, or until a seeded bug is found."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from adapter_store.layout import DEFAULT_TENANT
from tests.chaos.stateful.machine import RULES, NodeStates
from tests.chaos.stateful.scene import Scene
from tests.chaos.stateful.shelf import NAMES, Shelf, name_of


@dataclass(frozen=True, slots=True)
class Found:
    """What some examples showed."""

    tally: Counter[str]
    violation: str
    """The first broken promise, in words; empty when all held."""
    examples: int
    """How many it took; when nothing was found, all that had every one of their rules."""


@cache
def shelf() -> Shelf:
    """This process's adapters and base."""
    folder = tempfile.TemporaryDirectory(prefix="lorapool-shelf-")
    made = Shelf(Path(folder.name))
    folder.cleanup()
    return made


def run_examples(first: int, count: int, *, tell: bool = False) -> Found:
    """So many examples from one seed; with `tell`, a failing one is made short and printed."""
    tally: Counter[str] = Counter()

    class Machine(NodeStates):
        pass

    Machine.shelf, Machine.tally = shelf(), tally
    chosen = settings(
        max_examples=count,
        stateful_step_count=RULES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if tell else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.normal if tell else Verbosity.quiet,
    )
    try:
        run_state_machine_as_test(seed(first)(Machine), settings=chosen)
    except Exception as error:
        return Found(tally, f"{type(error).__name__}: {error}", tally["failed at"])
    return Found(tally, "", tally["whole"])


def reload_each(count: int) -> int:
    """How many of so many adapters lie bit-equal in the pool again after they were evicted."""
    assert count <= NAMES
    scene = Scene(shelf())
    for number in range(count):
        local = shelf().content(number, 0).local
        scene.change(partial(scene.publisher.publish, DEFAULT_TENANT, name_of(number), local))
    for _ in range(2):
        for number in range(count):
            scene.ask(DEFAULT_TENANT, name_of(number), tokens=1)
            scene.run_freely()
    scene.calm_down()
    loaded = Counter(scene.node.fills)
    versions = {shelf().content(number, 0).vdig for number in range(count)}
    return sum(times >= 2 and key.vdig in versions for key, times in loaded.items())

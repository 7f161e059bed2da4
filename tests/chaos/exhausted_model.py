"""T2: every order of events of the protocol's model keeps its promises; every mutant breaks one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.chaos.bench import Bench
from tests.chaos.exploration import explore
from tests.chaos.protocol_model import Mutant, World
from tests.chaos.row import Row

_ONE_EACH = World(publishers=1, collectors=1)


@dataclass(frozen=True, slots=True)
class Case:
    """A world to exhaust and how many states it is known to have."""

    world: World
    states: int


CASES = (
    Case(_ONE_EACH, 10_165),
    Case(World(publishers=1, collectors=2), 485_604),
    Case(World(publishers=2, collectors=0), 240_276),
    Case(World(publishers=2, collectors=1, rebase=False), 778_041),
)

MUTANTS = {
    **dict.fromkeys(Mutant, _ONE_EACH),
    Mutant.TIMEOUT_IS_FAILURE: World(publishers=1, collectors=0),
    Mutant.UNCONDITIONAL_PUT: World(publishers=2, collectors=0, delays=False),
    Mutant.REUSE_KEY: World(publishers=1, collectors=2),
    Mutant.DROP_PLAN_EARLY: World(publishers=1, collectors=2),
}
"""The smallest world in which each is found."""


def run(scale: float, seed: int, bench: Bench) -> Row:
    """Below scale 1 the larger worlds are left out; a world is exhausted or not tried at all."""
    limit = scale * max(case.states for case in CASES)
    cases = [case for case in CASES if case.states <= limit or case.world is _ONE_EACH]
    collectors = max(case.world.collectors for case in cases)
    states, violations = 0, []
    for case in cases:
        found = explore(case.world)
        states += found.states
        if found.broken:
            violations.append(f"{case.world}: {found.broken}, by {' / '.join(found.trace)}")
        elif found.states != case.states:
            violations.append(
                f"{case.world} has {found.states:,} states, not {case.states:,}: "
                "the model was changed, say so here"
            )
    controls = {
        mutant.value: bool(explore(replace(world, mutant=mutant)).broken)
        for mutant, world in MUTANTS.items()
        if world.collectors <= collectors
    }
    return Row(
        id="T2",
        cases=states,
        unit="states",
        violations=violations,
        controls=controls,
        seeds="none: exhaustive",
        notes=f"{len(cases)} of {len(CASES)} worlds exhausted",
    )

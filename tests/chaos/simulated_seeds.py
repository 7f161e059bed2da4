"""T3: the real publisher, collector, reaper, reader and node policy, simulated.

Publishers, collectors, people who pin, and nodes run as tasks of one deterministic scheduler over a
simulated bucket, Redis and clocks. One seed is one run: some hundred steps in which processes die,
requests are dropped, delayed, doubled and reordered, answers are lost, leases expire, Redis forgets
and clocks jump. After every step I1 to I7 and N3, N5, N7, N8 are asked for; at the end, when all is
quiet, nothing may be left open and no garbage lie about.

The controls are bugs seeded into the product, each of which has to be found within 5,000 seeds.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.chaos.bench import Bench
from tests.chaos.row import Row
from tests.chaos.simulation.bugs import BUGS, SOON_FOUND
from tests.chaos.simulation.nodes import without_tensors
from tests.chaos.simulation.run import Outcome, simulate

SEEDS = 20_000
FEWEST_SEEDS = 120
CONTROL_SEEDS = 5_000
ALL_CONTROLS_FROM = 0.05
_BATCH = 100
_PROCESSES = 2


def run(scale: float, seed: int, bench: Bench) -> Row:
    """`seed` moves the whole range: seed 1 takes the seeds after those of seed 0."""
    count = max(FEWEST_SEEDS, round(SEEDS * scale))
    first = seed * SEEDS
    names = list(BUGS) if scale >= ALL_CONTROLS_FROM else list(SOON_FOUND)
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    steps = 0
    batches = [
        range(start, min(start + _BATCH, first + count))
        for start in range(first, first + count, _BATCH)
    ]
    with ProcessPoolExecutor(
        _PROCESSES, mp_context=get_context("spawn"), initializer=_settle_down
    ) as pool:
        found = pool.map(_seeds_to_find, names, [first] * len(names))
        for outcome in (one for batch in pool.map(_simulated, batches) for one in batch):
            faults += outcome.faults
            outcomes += outcome.outcomes
            steps += outcome.steps
            if outcome.violation:
                violations.append(f"{outcome.violation}; {_replay(outcome.seed)}")
        seeds_to_find = dict(zip(names, found, strict=True))
    return Row(
        id="T3",
        cases=count,
        unit="simulated seeds",
        violations=violations,
        controls={name: seeds is not None for name, seeds in seeds_to_find.items()},
        faults=dict(faults.most_common()),
        seeds=f"{first}-{first + count - 1}",
        figures={
            "steps": steps,
            **{f"seeds to find {name}": seeds or 0 for name, seeds in seeds_to_find.items()},
            **dict(sorted(outcomes.items())),
        },
        notes="replay one: python -m tests.chaos.simulation --seed N [--bug NAME]",
    )


def _replay(seed: int) -> str:
    return f"replay: python -m tests.chaos.simulation --seed {seed}"


def _settle_down() -> None:
    """One processor for all threads of a process: they take turns, and hand over faster so."""
    logging.disable()
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[os.getpid() % len(processors)]})


def _simulated(seeds: Sequence[int]) -> list[Outcome]:
    with without_tensors():
        return [simulate(seed) for seed in seeds]


def _seeds_to_find(name: str, first: int) -> int | None:
    """How many seeds it takes to notice a bug; None when they are not enough."""
    with without_tensors(), BUGS[name]():
        for count in range(1, CONTROL_SEEDS + 1):
            if simulate(first + count - 1).violation:
                return count
    return None

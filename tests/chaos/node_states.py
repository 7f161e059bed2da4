"""T10: whatever happens to a node, in whatever order, N1 to N8 hold after every step.

A Hypothesis state machine over the real engine and a real forward pass on the CPU: a pool of 16
slots' worth of pages, 1,000 names, tattooed adapters whose tokens say which version answers and
whether it is whole. Publishers publish, stage, activate, split, roll back and delete; callers ask,
cancel and run out of time; the store goes away, chunks arrive damaged, copies fail; steps, workers
and news come in any order. And 1,000 adapters that were evicted lie bit-equal in the pool again.

The controls are bugs seeded into the product, each of which has to be found.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.chaos.bench import Bench
from tests.chaos.row import Row
from tests.chaos.stateful.bugs import BUGS, SOON_FOUND
from tests.chaos.stateful.examples import Found, reload_each, run_examples
from tests.chaos.stateful.shelf import NAMES

EXAMPLES = 2650
"""Hypothesis varies one in five by cutting it short; the whole ones are the row's cases."""
FEWEST_EXAMPLES = 8
FEWEST_RELOADS = 24
CONTROL_EXAMPLES = 400
ALL_CONTROLS_FROM = 0.05
_BATCH = 125
"""Examples from one seed."""
_SEEDS = 1000
"""A row's seeds are so far apart."""
_PROCESSES = 2
_FAULTS = (
    "requests the store left unanswered",
    "chunks damaged",
    "copies failed",
    "cancelled",
    "deadlines passed",
)


def run(scale: float, seed: int, bench: Bench) -> Row:
    """At scale 1: 2,650 examples, of which over 2,000 have all their 50 rules."""
    count = max(FEWEST_EXAMPLES, round(EXAMPLES * scale))
    reloads = max(FEWEST_RELOADS, round(NAMES * min(1.0, scale)))
    names = list(BUGS) if scale >= ALL_CONTROLS_FROM else list(SOON_FOUND)
    first = seed * _SEEDS
    batches = [min(_BATCH, count - done) for done in range(0, count, _BATCH)]
    seeds = range(first, first + len(batches))
    with ProcessPoolExecutor(
        _PROCESSES, mp_context=get_context("spawn"), initializer=_settle_down
    ) as pool:
        reloaded = pool.submit(reload_each, reloads)
        found = list(pool.map(run_examples, seeds, batches))
        controls = dict(zip(names, pool.map(_found, names, [first] * len(names)), strict=True))
        whole = reloaded.result()
    violations = [
        f"{one.violation}; replay: python -m tests.chaos.stateful --seed {start} --examples {size}"
        for start, size, one in zip(seeds, batches, found, strict=True)
        if one.violation
    ]
    if whole < reloads:
        violations.append(f"{reloads - whole} of {reloads} adapters were never loaded again")
    tally: Counter[str] = sum((one.tally for one in found), Counter())
    return Row(
        id="T10",
        cases=sum(one.examples for one in found),
        unit="examples of 50 rules",
        violations=violations,
        controls={name: one.violation != "" for name, one in controls.items()},
        faults={kind: tally.pop(kind, 0) for kind in _FAULTS},
        seeds=f"{first}-{first + len(batches) - 1}",
        figures={
            "reloaded bit-equal": whole,
            **{f"examples to find {name}": one.examples for name, one in controls.items()},
            **{name: tally[name] for name in sorted(tally) if name not in ("begun", "whole")},
        },
        notes="replay a batch: python -m tests.chaos.stateful --seed N --examples M [--bug NAME]",
    )


def _settle_down() -> None:
    logging.disable()
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[os.getpid() % len(processors)]})


def _found(name: str, first: int) -> Found:
    """What a seeded bug shows, and after how many examples."""
    with BUGS[name]():
        return run_examples(first, CONTROL_EXAMPLES)

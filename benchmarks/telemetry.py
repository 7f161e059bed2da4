"""What counting costs: each token, each step, and the engine thread at a scrape.

`python -m benchmarks.telemetry` writes benchmarks/results/telemetry.json. The step beside which
the cost is told is the one of 16 adapters in cpu.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.machine import machine
from inference_node.adapters.host_tier import HostTier
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.engine.census import Census, GroupSize
from inference_node.engine.meters import Meters
from inference_node.engine.names import Names
from inference_node.engine.sequence import Sequence
from inference_node.request import Request
from inference_node.text import StopMatcher

RESULTS = Path(__file__).parent / "results"
ROWS = 16
RESIDENTS, ON_HOST, LISTED = 1000, 4000, 50
REPEATS = 9


def main() -> None:
    counted, bare = _per_step(_counted()), _per_step(_bare())
    found = {
        "machine": machine(),
        "rows": ROWS,
        "step_us": round(counted, 2),
        "of_that_the_loop_of_the_measurement_us": round(bare, 2),
        "scrape": {
            "residents": RESIDENTS,
            "on_host": ON_HOST,
            "listed": LISTED,
            "engine_thread_ms": round(_scrape() * 1e3, 2),
        },
    }
    (RESULTS / "telemetry.json").write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _sequences() -> list[Sequence]:
    request = Request(request_id="r", tenant="t", adapter="a", prompt=(1,) * 32)
    return [
        Sequence(
            request=replace(request, request_id=str(n)),
            on_event=lambda event: None,
            accepted_at=0.0,
            order=n,
            seed=0,
            detokenizer=cast(Any, None),
            stops=StopMatcher(()),
            first_token_at=0.1,
            last_token_at=0.1,
        )
        for n in range(ROWS)
    ]


def _counted() -> Callable[[], None]:
    """What a decode step of ROWS requests counts."""
    meters, sequences, clock = Meters(), _sequences(), time.monotonic

    def step() -> None:
        meters.begin_step(loading=False)
        began = clock()
        meters.end_step(clock() - began)
        for sequence in sequences:
            meters.token(sequence, 0.125)

    return step


def _bare() -> Callable[[], None]:
    """The same without counting."""
    sequences = _sequences()

    def step() -> None:
        for _ in sequences:
            pass

    return step


def _per_step(step: Callable[[], None], *, steps: int = 2000) -> float:
    """Microseconds, the median of REPEATS."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(steps):
            step()
        times.append((time.perf_counter() - began) / steps * 1e6)
    return median(times)


def _scrape() -> float:
    """Seconds that the engine thread is held by a scrape of a large node."""
    clock = time.monotonic
    slots = SlotTable(PageAllocator([RESIDENTS]), headroom=(0,))
    watcher = SimpleNamespace(watch=list, checked_at=lambda *name: 0.0)
    names = Names(slots, cast(Any, watcher))
    host = HostTier(ON_HOST + RESIDENTS)
    numbers = count()
    for _ in range(RESIDENTS):
        entry = _entry(next(numbers))
        slots.activate(slots.stage(entry.key, wanted=(1,), scale=1.0))
        names.serve(entry)
    for _ in range(ON_HOST):
        host.put(_entry(next(numbers)), cast(Any, SimpleNamespace(bytes=1, pages=(1,))))
    arrivals = SimpleNamespace(coming=dict, is_swap=lambda arrival: False)
    census = Census(
        slots,
        cast(Any, arrivals),
        host,
        names,
        cast(Any, SimpleNamespace(refused=tuple)),
        groups=[GroupSize("q_proj", 1024)],
        clock=clock,
    )
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        census.survey(LISTED)
        census.pool()
        times.append(time.perf_counter() - began)
    return median(times)


def _entry(number: int) -> Entry:
    return Entry("t", f"a{number}", "v1", 1, VersionKey("t", f"{number:064x}"))


if __name__ == "__main__":
    main()

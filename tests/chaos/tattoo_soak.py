"""T11: a node under everything that a week brings, whose every token says who made it.

A real node process serves 64 tattooed adapters of which 16 fit its pool: their tokens name adapter
and version, and tell whether all of it is there. Callers stay, leave, have no time, pin versions
and ask for the newest, while an adapter is published every 2 s, one is rolled back every 30 s, and
S3 and Redis are out of reach for 5 s each once a minute. No answer is by a wrong version or a mixed
one, torn, or the base model's; every bare name only goes up; every request ends, and in no other
way than it may. In the end memory, files, threads, leases and pages are where they were.

6,000 answers at 100 a second are the short form, which is among the tests; `make soak` takes 36,000
at 20 a second, half an hour. Arithmetic is float32: in bfloat16 a near tie could read as a tear.

The controls are nodes with a bug in them, each of which has to be noticed within a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from adapter_store.bases import register_base
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.reader import Reader
from adapter_store.settings import Endpoints
from tests.chaos.bench import Bench
from tests.chaos.row import Row
from tests.chaos.soak.bugs import CONTROLS
from tests.chaos.soak.judge import Judge
from tests.chaos.soak.publishing import Publishing
from tests.chaos.soak.session import Session
from tests.chaos.soak.site import launched, lines_to
from tests.chaos.soak.stock import ADAPTERS, Stock, name_of
from tests.chaos.soak.weather import Weather
from tests.conftest import open_endpoint
from tests.inference_node.tattoo import Verdict

ANSWERS = 6000
FEWEST = 300
HURRIED, STEADY = 100.0, 20.0
"""Requests a second: of the short form, and of longer ones."""
CONTROL_RATE = 15.0


def run(scale: float, seed: int, bench: Bench) -> Row:
    """At scale 1 the short form, at 6 what `make soak` does."""
    wanted = max(FEWEST, round(ANSWERS * scale))
    stock = Stock(bench.folder / "tattoos")
    judge = Judge(stock.marks)
    with bench.endpoints() as endpoints, lines_to(endpoints) as lines:
        publishing = Publishing(stock, lines.endpoints, seed)
        with launched(stock.base, lines.endpoints, bench.folder / "node") as node:
            register_base(open_endpoint(endpoints), stock.card)
            publishing.begin()
            node.process.wait_ready()
            weather = Weather(lines.store, lines.redis)
            session = Session(node, publishing, judge, seed=seed, weather=weather, tell=_tell)
            with publishing.going_on():
                asyncio.run(session.soak(wanted, STEADY if scale > 1 else HURRIED))
            reader = Reader(open_endpoint(endpoints))
            asyncio.run(session.end(_heads(reader)))
        judge.check_log(reader, [name_of(number) for number in range(ADAPTERS)])
        found = _controls(stock, publishing, endpoints, bench.folder, seed)
    return Row(
        id="T11",
        cases=judge.answers,
        unit="answers",
        violations=[*judge.violations, *publishing.troubles],
        controls={name: seconds is not None for name, seconds in found.items()},
        faults={**weather.faults, "cancelled": judge.tally.pop("cancelled")},
        seeds=str(seed),
        figures={
            **{one.value: judge.verdicts[one] for one in Verdict},
            **dict(sorted(judge.tally.items())),
            **dict(sorted(publishing.tally.items())),
            **session.figures,
            **{f"seconds to find {name}": seconds or 0.0 for name, seconds in found.items()},
        },
        notes="float32, 64 adapters on 16 adapters' pages; publishes every 2 s",
    )


def _heads(reader: Reader) -> Mapping[str, int]:
    """The newest generation of every adapter, by its log."""
    names = [name_of(number) for number in range(ADAPTERS)]
    return {name: reader.current(DEFAULT_TENANT, name).gen for name in names}


def _controls(
    stock: Stock, publishing: Publishing, endpoints: Endpoints, folder: Path, seed: int
) -> dict[str, float | None]:
    """Seconds until each seeded bug was noticed; None for one that was not."""
    with contextlib.ExitStack() as running:
        sessions = {}
        for number, name in enumerate(CONTROLS):
            place = folder / f"control-{number}"
            node = running.enter_context(launched(stock.base, endpoints, place, name))
            sessions[name] = Session(node, publishing, Judge(stock.marks), seed=seed)
        for session in sessions.values():
            session.node.process.wait_ready()
        running.enter_context(publishing.going_on())

        async def all_of_them() -> list[float | None]:
            looks = [session.seconds_to_notice(CONTROL_RATE) for session in sessions.values()]
            return list(await asyncio.gather(*looks))

        return dict(zip(sessions, asyncio.run(all_of_them()), strict=True))


_BEGAN = time.monotonic()


def _tell(text: str) -> None:
    print(f"T11 {time.monotonic() - _BEGAN:6.0f} s  {text}", file=sys.stderr, flush=True)

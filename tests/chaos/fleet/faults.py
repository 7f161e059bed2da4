"""F2: flips, load and faults at once: what callers of a fleet behind a gateway are answered.

Three nodes behind Envoy serve 64 tattooed adapters, whose tokens say which adapter and version made
them. Callers ask through the gateway at a steady rate and carry the generations they saw. Every two
seconds a version is staged, waited for and activated, now and then one is rolled back. At first
nothing is wrong: nearly every request is on the node that has its adapter, and a hot adapter is on
all. Then a node is killed, a node is drained, Redis and the store are stopped, and Envoy is
restarted, in turn.

No answer may be wrong, mixed, torn or the base's, and none older than what its caller saw. A drain
and a loss of Redis may cost no request; a kill only those in flight on that node, a restart of
Envoy those that met it, an outage of the store those that needed it, each with an error that says
to try again. The controls are a node that keeps adapters by name, one that minds no
`min_generation`, and those of steady.py.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from adapter_store.errors import FleetUnseen
from adapter_store.fleet_view import FleetWatch
from adapter_store.registry import open_registry
from adapter_store.settings import Endpoints
from inference_node.client import Client
from tests.adapter_store.waiting import wait_until
from tests.chaos.bench import Bench
from tests.chaos.fleet.callers import LONG, STREAM_EVERY, Call, Caller
from tests.chaos.fleet.flipper import Flipper
from tests.chaos.fleet.front import Front, front_before
from tests.chaos.fleet.misfortunes import misfortunes
from tests.chaos.fleet.node import BEFALLEN, BY_NAME, NO_LEAST
from tests.chaos.fleet.site import running_fleet
from tests.chaos.fleet.steady import (
    Ledger,
    unbounded_is_noticed,
    unsaid_is_noticed,
)
from tests.chaos.fleet.tattoos import Tattoos
from tests.chaos.fleet.windows import Window, judged, kind_met, lost_elsewhere
from tests.chaos.row import Row

SECONDS, RATE = 600.0, 30.0
SHORTEST_S, FEWEST = 14.0, 2
NODES, ADAPTERS, CALLERS = 3, 64, 16
FAULTS = 10
"""In the full run: one a minute."""
WHOLE = 0.1
"""Below this scale it is a third of the load and a quarter of the adapters."""
STEADY_S, SHORTEST_STEADY_S = 30.0, 4.0
"""Before the time in which there are faults."""
FIRST_OF_CONTROL = 100
"""Versions that no other part of the row has published."""
_WRITTEN_S = 20.0
"""In which Envoy has written what failed."""
_NODE = (
    ("LORAPOOL_POOL_MB", "4"),
    ("LORAPOOL_DRAIN_DELAY", "3"),
    ("LORAPOOL_METRICS_ADAPTERS", "128"),
)
_ALONE = (("LORAPOOL_POLL_SECONDS_WITHOUT_HINTS", "3600"),)
"""A node that nobody tells of anything: it looks when a request makes it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything there is."""

    seconds: float
    steady_s: float
    faults: int
    rate: float
    adapters: int
    callers: int

    @classmethod
    def at(cls, scale: float) -> Plan:
        seconds, faults = max(SHORTEST_S, SECONDS * scale), max(FEWEST, round(FAULTS * scale))
        if scale >= WHOLE:
            return cls(seconds, STEADY_S, faults, RATE, ADAPTERS, CALLERS)
        # So few callers that no node is over its bound, were this machine ever so busy.
        return cls(seconds, SHORTEST_STEADY_S, faults, RATE / 3, ADAPTERS // 4, NODES)


def run(scale: float, seed: int, bench: Bench) -> Row:
    plan = Plan.at(scale)
    with bench.own_stack() as stack:
        tattoos = Tattoos(bench.folder)
        with (
            running_fleet(
                stack.endpoints, tattoos.base, bench.folder, nodes=NODES, settings=_NODE
            ) as nodes,
            front_before(stack, nodes) as front,
        ):
            flipper = Flipper(stack.endpoints, tattoos, plan.adapters, random.Random(seed))
            flipper.begin()
            ledger = Ledger.of(nodes, front, plan.adapters)
            # First these, so that the gateway is connected to all nodes: it counts no request that
            # waits for a connection.
            caught = {"callers that do not say what they want": unsaid_is_noticed(ledger, front)}
            spread = ledger.spread(front, 0)
            caught["a gateway without a bound on load"] = unbounded_is_noticed(ledger, front, 0)
            callers = [
                Caller(front.address, plan.adapters, plan.rate / plan.callers, seed + n)
                for n in range(plan.callers)
            ]
            began = time.monotonic()
            with running([*callers, flipper]):
                with ledger.placement() as placement:
                    time.sleep(plan.steady_s)
                windows = misfortunes(front, nodes, count=plan.faults, seconds=plan.seconds)
                lasted = time.monotonic() - began
            calls = [call for caller in callers for call in caller.calls]
            broken = flipper.troubles + spread.broken() + placement.broken()
            broken += apart_in_the_end(stack.endpoints) + written_elsewhere(calls, windows, front)
        caught |= bugs_that_are_noticed(stack.endpoints, tattoos, bench)
    if not flipper.done["flipped"]:
        broken.append("nothing was flipped")
    broken += [text for call in calls for text in judged(call, windows)]
    return Row(
        id="F2",
        cases=len(calls),
        unit="requests through the gateway",
        violations=broken,
        controls=caught,
        faults=Counter(window.kind for window in windows),
        seeds=str(seed),
        figures={
            "seconds": round(lasted, 1),
            "asked_per_second": round(len(calls) / lasted, 1),
            "adapters": plan.adapters,
            "affinity": round(placement.affinity, 4),
            "affinity_of_requests": placement.requests,
            **{f"hot_adapter_on_node_{n}": share for n, share in enumerate(spread.by_node, 1)},
            **flipper.figures(),
            **answered(calls, windows),
        },
        notes=f"{NODES} nodes on a tattoo base behind Envoy, all on one machine; one request in "
        f"{STREAM_EVERY} is a stream of {LONG} tokens",
    )


def answered(calls: Sequence[Call], windows: Sequence[Window]) -> dict[str, int]:
    """How many requests ended how."""
    verdicts = Counter(call.verdict.value for call in calls if call.verdict is not None)
    lost = Counter(kind_met(call, windows) for call in calls if call.verdict is None)
    return {
        **{f"answers_{kind.replace(' ', '_')}": n for kind, n in sorted(verdicts.items())},
        **{f"lost_to_{kind.replace(' ', '_')}": n for kind, n in sorted(lost.items())},
    }


def written_elsewhere(calls: Sequence[Call], windows: Sequence[Window], front: Front) -> list[str]:
    """What was lost to a kill and not on that node, once the gateway has written all failures."""
    found: list[str] = []

    def all_found() -> bool:
        found[:] = lost_elsewhere(calls, windows, front.failures())
        return not found

    with contextlib.suppress(AssertionError):
        wait_until(all_found, within_s=_WRITTEN_S)
    return found


def apart_in_the_end(endpoints: Endpoints) -> list[str]:
    """What nodes still serve in different generations, a poll after the last change."""
    watch, apart = FleetWatch(open_registry(endpoints.redis_url)), ["nobody was seen"]

    def together() -> bool:
        with contextlib.suppress(FleetUnseen):
            fleet = watch.look()
            apart[:] = [f"{spread.name[1]}: {spread.generations}" for spread in fleet.skewed()]
            if len(fleet.nodes) < NODES:
                apart.append(f"{len(fleet.nodes)} nodes are seen")
        return not apart

    with contextlib.suppress(AssertionError):
        wait_until(together, within_s=45.0)
    return [f"in the end nodes differ: {text}" for text in apart]


def bugs_that_are_noticed(endpoints: Endpoints, tattoos: Tattoos, bench: Bench) -> dict[str, bool]:
    """The controls: a node that serves one version as another, and one that serves an old one."""
    bugs = {
        BY_NAME: "a node that keeps adapters by name",
        NO_LEAST: "a node that minds no min_generation",
    }
    with running_fleet(
        replace(endpoints, redis_url=""),
        tattoos.base,
        bench.folder / "control",
        nodes=1,
        settings=_ALONE,
        bugs=tuple(bugs),
    ) as (node,):
        befallen = [BEFALLEN[bug] for bug in bugs]
        flipper = Flipper(endpoints, tattoos, 1, random.Random(0), first=FIRST_OF_CONTROL)
        caller = Caller(node.address, 1, 1.0, 0)
        with Client(node.address) as client:
            for adapter in (*befallen, *befallen):
                caller.ask(client, adapter, min_generation=flipper.publish(adapter))
    found = {call.adapter for call in caller.calls if list(judged(call, ()))}
    return {told: BEFALLEN[bug] in found for bug, told in bugs.items()}


@contextlib.contextmanager
def running(workers: Sequence[Caller | Flipper]) -> Iterator[None]:
    """For as long as the block; raises what a worker broke down with."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(workers)) as pool:
        tasks = [pool.submit(worker.run, stop) for worker in workers]
        try:
            yield
        finally:
            stop.set()
    for task in tasks:
        task.result()

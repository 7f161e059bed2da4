"""F2: flips, load and faults at once: what callers of a fleet behind a gateway are answered.

Three nodes behind Envoy serve 64 tattooed adapters, whose tokens say which adapter and version made
them. Callers ask through the gateway at a steady rate and carry the generations they saw. Every two
seconds a version is staged, waited for and activated, now and then one is rolled back. Meanwhile a
node is killed, a node is drained, Redis and the store are stopped, and Envoy is restarted, in turn.

No answer may be wrong, mixed, torn or the base's, and none older than what its caller saw. A drain
and a loss of Redis may cost no request; a kill only those in flight, a restart of Envoy those that
met it, an outage of the store those that needed it, each with an error that says to try again.
The control is a node that keeps adapters by name.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice

from adapter_store.embedded import EmbeddedStack
from adapter_store.errors import FleetUnseen
from adapter_store.fleet_view import FleetWatch
from adapter_store.registry import open_registry
from adapter_store.services import free_ports
from adapter_store.settings import REDIS_SERVICE, S3_SERVICE, Endpoints
from inference_node.client import Client
from inference_node.errors import NodeError
from inference_node.gateway.config import GatewayConfig
from inference_node.gateway.program import command
from inference_node.gateway.render import render
from tests.adapter_store.waiting import wait_until
from tests.chaos.bench import Bench
from tests.chaos.fleet.callers import Call, Caller
from tests.chaos.fleet.flipper import Flipper
from tests.chaos.fleet.site import HOST, FleetNode, running_fleet
from tests.chaos.fleet.tattoos import Tattoos
from tests.chaos.row import Row
from tests.inference_node.tattoo import Verdict

SECONDS, RATE = 600.0, 30.0
SHORTEST_S = 20.0
NODES, ADAPTERS, CALLERS = 3, 64, 8
FAULTS = 10
"""In the full run: one a minute."""
OUTAGE_S = 10.0
LEAVE_S = 120.0
"""In which a drained node must have left."""
MET_S = 2.0
"""After a kill or a restart: callers may meet what was so long ago."""
KILL, DRAIN, REDIS, STORE, GATEWAY = (
    "node killed",
    "node drained",
    "Redis stopped",
    "store stopped",
    "gateway restarted",
)
KINDS = (KILL, DRAIN, REDIS, STORE, GATEWAY)
FREE = (DRAIN, REDIS)
"""These may cost no request."""
_PATIENCE_S = 240.0
FIRST_OF_CONTROL = 100
"""Versions that no other part of the row has published."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a fault could be felt, on the monotonic clock."""

    kind: str
    began: float
    ended: float

    def touches(self, call: Call) -> bool:
        return call.began <= self.ended and call.ended >= self.began


def run(scale: float, seed: int, bench: Bench) -> Row:
    seconds = max(SHORTEST_S, SECONDS * scale)
    rate = RATE if scale >= 0.1 else RATE / 3
    adapters = ADAPTERS if scale >= 0.1 else ADAPTERS // 4
    count = max(3, round(FAULTS * scale))
    with bench.own_stack() as stack:
        tattoos = Tattoos(bench.folder)
        with running_fleet(
            stack.endpoints, tattoos.base, bench.folder, nodes=NODES, settings=_POOL
        ) as nodes:
            front = start_gateway(stack, nodes)
            flipper = Flipper(stack.endpoints, tattoos, adapters, random.Random(seed))
            flipper.begin()
            callers = [Caller(front, adapters, rate / CALLERS, seed + n) for n in range(CALLERS)]
            began = time.monotonic()
            with running([*callers, flipper]):
                windows = misfortunes(stack, nodes, count=count, seconds=seconds)
                lasted = time.monotonic() - began
            broken = flipper.troubles + apart_in_the_end(stack.endpoints)
            if not flipper.done["flipped"]:
                broken.append("nothing was flipped")
        caught = a_node_that_keeps_adapters_by_name_is_noticed(stack.endpoints, tattoos, bench)
    calls = [call for caller in callers for call in caller.calls]
    broken += [text for call in calls for text in judged(call, windows)]
    verdicts = Counter(call.verdict.value for call in calls if call.verdict is not None)
    lost = Counter(_kind_of(call, windows) for call in calls if call.verdict is None)
    return Row(
        id="F2",
        cases=len(calls),
        unit="requests through the gateway",
        violations=broken,
        controls={"a node that keeps adapters by name": caught},
        faults=Counter(window.kind for window in windows),
        seeds=str(seed),
        figures={
            "seconds": round(lasted, 1),
            "asked_per_second": round(len(calls) / lasted, 1),
            "adapters": adapters,
            "flips": flipper.done["flipped"],
            "flips_without_a_view_of_the_fleet": flipper.done["unseen"],
            "flips_not_ready_in_time": flipper.done["not ready"],
            "rollbacks": flipper.done["rolled back"],
            "changes_the_store_was_away_for": flipper.done["away"],
            **{f"answers_{name.replace(' ', '_')}": n for name, n in sorted(verdicts.items())},
            **{f"lost_to_{kind.replace(' ', '_')}": n for kind, n in sorted(lost.items())},
        },
        notes=f"{NODES} nodes on a tattoo base behind Envoy, all on one machine",
    )


_POOL = (("LORAPOOL_POOL_MB", "4"), ("LORAPOOL_DRAIN_DELAY", "3"))


def judged(call: Call, windows: Sequence[Window]) -> Iterator[str]:
    """What one request breaks."""
    if call.verdict is not None:
        if call.verdict is not Verdict.RIGHT:
            yield f"adapter {call.adapter} was answered by {call.verdict.value}"
        if call.older:
            yield call.older
        return
    if not call.retryable:
        yield f"adapter {call.adapter}: {call.reason}, and no word on when to try again"
    elif _kind_of(call, windows) in (*FREE, "nothing"):
        yield f"adapter {call.adapter}: {call.reason} during {_kind_of(call, windows)}"


def _kind_of(call: Call, windows: Sequence[Window]) -> str:
    """The fault that a lost request met: one that may cost some before one that may not."""
    met = [window.kind for window in windows if window.touches(call)]
    return min(met, key=lambda kind: kind in FREE, default="nothing")


def misfortunes(
    stack: EmbeddedStack, nodes: Sequence[FleetNode], *, count: int, seconds: float
) -> list[Window]:
    """So many faults, evenly over the time; when each could be felt.

    It lasts longer where nodes take long to come back: a fault waits until all are ready. What ends
    with the thread that began it is begun here, on the caller's thread.
    """
    began, every = time.monotonic(), seconds / count
    outage = min(OUTAGE_S, every / 3)
    windows = []
    victims = cycle(nodes)
    for number, kind in enumerate(islice(cycle(KINDS), count)):
        _sleep_until(began + (number + 0.3) * every)
        if kind in (KILL, DRAIN):
            all_ready(nodes)
        windows.append(_strike(kind, stack, next(victims), outage))
    all_ready(nodes)
    _sleep_until(began + seconds)
    return windows


def _strike(kind: str, stack: EmbeddedStack, node: FleetNode, outage: float) -> Window:
    began = time.monotonic()
    match kind:
        case "node killed":
            node.process.kill()
            ended = time.monotonic()
            node.process.launch()
        case "node drained":
            node.process.terminate()
            code = node.process.exit_code(within_s=LEAVE_S)
            assert code == 0, f"a drained node left with {code}"
            ended = time.monotonic()
            node.process.launch()
        case "gateway restarted":
            stack.restart("gateway")
            _answers(stack.addresses["gateway"])
            ended = time.monotonic()
        case _:
            service = REDIS_SERVICE if kind == REDIS else S3_SERVICE
            stack.kill(service)
            time.sleep(outage)
            stack.restart(service)
            ended = time.monotonic()
    return Window(kind, began, ended if kind in FREE else ended + MET_S)


def all_ready(nodes: Sequence[FleetNode]) -> None:
    """Every node has started and takes requests."""
    for node in nodes:
        node.process.wait_ready(within_s=_PATIENCE_S)
        _answers(node.address)


def start_gateway(stack: EmbeddedStack, nodes: Sequence[FleetNode]) -> str:
    """Envoy before the nodes; where it listens."""
    front, admin, metrics = (f"{HOST}:{port}" for port in free_ports(HOST, 3))
    file = stack.state_dir / "envoy.yaml"
    config = GatewayConfig(
        nodes=tuple(node.address for node in nodes), listen=front, admin=admin, metrics=metrics
    )
    file.write_text(render(config))
    stack.spawn("gateway", command(file), address=front)
    _answers(front)
    return front


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


def a_node_that_keeps_adapters_by_name_is_noticed(
    endpoints: Endpoints, tattoos: Tattoos, bench: Bench
) -> bool:
    """The control: it serves one version under another's label."""
    with running_fleet(
        endpoints, tattoos.base, bench.folder / "control", nodes=1, bug="by-name"
    ) as (node,):
        flipper = Flipper(endpoints, tattoos, 1, random.Random(0), first=FIRST_OF_CONTROL)
        caller = Caller(node.address, 1, 1.0, 0)
        with Client(node.address) as client:
            for _ in range(2):
                gen = flipper.publish(0)
                caller.ask(client, 0, min_generation=gen)
    return any(text for call in caller.calls for text in judged(call, []))


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


def _answers(address: str) -> None:
    with Client(address) as client:

        def ready() -> bool:
            with contextlib.suppress(NodeError):
                return client.ready(timeout=2.0)
            return False

        wait_until(ready, within_s=_PATIENCE_S)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))

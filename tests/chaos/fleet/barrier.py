"""F1: a flip through the barrier, and that no node serves a generation before the others can.

Three real nodes tell of themselves in Redis; each reaches the store through a door that notes what
content it fetches, and is asked without pause by a client of its own. Each flip stages a version,
waits for the nodes, and activates it with one record. From the first answer of the new generation
anywhere on, no node that was ready may fetch any of its content; and after a rollback nobody may
fetch at all. How far apart the nodes flip is measured by their answers.

While a node cannot fetch, a flip must not happen. The controls are a flip that waits for nobody,
and a barrier that takes every node's word for ready.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from adapter_store.attempt import Published
from adapter_store.barrier import Barrier, Quorum, Readiness, Stand, Subject
from adapter_store.commit import Publisher
from adapter_store.errors import NotReady
from adapter_store.locks import open_lock
from adapter_store.notify import open_announcer
from adapter_store.record import VersionRef
from adapter_store.registry import open_registry
from adapter_store.settings import Endpoints
from adapter_store.validate import LocalAdapter
from inference_node.client import Client, Stopping
from inference_node.errors import NodeError
from tests.adapter_store.waiting import wait_until
from tests.chaos.bench import Bench
from tests.chaos.fleet.site import FleetNode, running_fleet
from tests.chaos.nodes import TinyBase
from tests.chaos.propagation import over, quantile
from tests.chaos.row import Row
from tests.conftest import open_endpoint

TENANT = "default"
FLIPS, NODES, NAMES = 200, 3, 8
LANES = 2
"""Adapters that are flipped at the same time."""
SKEW_P99_S = 1.0
"""Between the first and the last node that serves a new generation."""
READY_S = 60.0
SHUT_S = 2.0
"""How long a flip waits for a node that cannot fetch."""
_PATIENCE_S = 60.0
_ONE = Stopping(max_new_tokens=1, ignore_eos=True)


def run(scale: float, seed: int, bench: Bench) -> Row:
    flips = max(4, round(FLIPS * scale))
    with bench.endpoints() as endpoints:
        base = TinyBase(bench.folder)
        with (
            running_fleet(endpoints, base.checkpoint, bench.folder, nodes=NODES) as nodes,
            asked(nodes) as askers,
        ):
            desk = Desk(endpoints, base, nodes, askers, first_seed=seed * 100_000)
            names = [f"adapter-{n}" for n in range(min(NAMES, flips // 2))]
            desk.settle(names)
            done = desk.flips(names, flips)
            back = [desk.rollback(name) for name in names]
            broken = [text for flip in (*done, *back) for text in flip.broken]
            broken += desk.refuses_a_flip_that_a_node_is_not_ready_for(names[0])
            caught = {
                "a flip that waits for nobody": desk.is_noticed(names[0], wait=False),
                "a barrier that takes every node for ready": desk.is_noticed(names[0], wait=True),
            }
            broken += [text for asker in askers for text in asker.troubles]
            answers = sum(asker.answers for asker in askers)
    skews = [flip.skew_s for flip in done]
    waits = [flip.ready_s for flip in done]
    return Row(
        id="F1",
        cases=len(done) + len(back),
        unit="flips of three nodes",
        violations=broken + over("flip skew", skews, SKEW_P99_S),
        controls=caught,
        faults={"a node that cannot fetch": 3},
        seeds=str(seed),
        figures={
            "answers": answers,
            "flip_skew_p50_s": round(quantile(skews, 0.5), 3),
            "flip_skew_p99_s": round(quantile(skews, 0.99), 3),
            "flip_skew_max_s": round(max(skews), 3),
            "flip_skew_bound_s": SKEW_P99_S,
            "staged_to_all_ready_p50_s": round(quantile(waits, 0.5), 3),
            "staged_to_all_ready_p99_s": round(quantile(waits, 0.99), 3),
            "rollback_skew_max_s": round(max(flip.skew_s for flip in back), 3),
        },
        notes=f"{NODES} nodes on a tiny checkpoint, {len(names)} adapters, {LANES} flipped at "
        "once; skew is between first answers of nodes that are asked without pause",
    )


@dataclass(frozen=True, slots=True)
class Flip:
    """One change of all nodes."""

    ready_s: float
    """From the staging's acknowledgement to the last node that was ready."""
    skew_s: float
    broken: tuple[str, ...]


class Asker:
    """Asks one node for every name in turn, without pause, and remembers what came first when."""

    def __init__(self, node: FleetNode) -> None:
        self.node = node
        self.answers = 0
        self.troubles: list[str] = []
        """Errors, and answers older than earlier ones: there should be none."""
        self._firsts: dict[tuple[str, int], float] = {}
        self._newest: dict[str, int] = {}
        self._names: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def follow(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def first(self, name: str, gen: int) -> float | None:
        """When an answer of `gen` or a later one came first."""
        times = [at for (of, g), at in list(self._firsts.items()) if of == name and g >= gen]
        return min(times, default=None)

    def _run(self) -> None:
        with Client(self.node.address) as client:
            while not self._stop.is_set():
                names = self._names
                if not names:
                    self._stop.wait(0.01)
                for name in names:
                    self._ask(client, name)

    def _ask(self, client: Client, name: str) -> None:
        try:
            gen = client.generate("x", adapter=name, stopping=_ONE).served.generation
        except NodeError as error:
            self.troubles.append(f"{self.node.address} answered for {name}: {error!r} {error}")
        else:
            self._note(name, gen, time.monotonic())

    def _note(self, name: str, gen: int, now: float) -> None:
        self.answers += 1
        before = self._newest.get(name, 0)
        if gen < before:
            self.troubles.append(
                f"{self.node.address} served generation {gen} of {name} after {before}"
            )
        self._newest[name] = max(before, gen)
        self._firsts.setdefault((name, gen), now)


class Desk:
    """Flips, and judges what the nodes made of it."""

    def __init__(
        self,
        endpoints: Endpoints,
        base: TinyBase,
        nodes: Sequence[FleetNode],
        askers: Sequence[Asker],
        *,
        first_seed: int,
    ) -> None:
        self._base = base
        self._nodes = nodes
        self._askers = askers
        self._registry = open_registry(endpoints.redis_url)
        self._seeds = itertools.count(first_seed)
        self._publisher = Publisher(
            open_endpoint(endpoints),
            lock=open_lock(endpoints.redis_url),
            announcer=open_announcer(endpoints.redis_url),
            actor="fleet",
            warn=lambda text: None,
        )

    def settle(self, names: Sequence[str]) -> None:
        """Every node serves every name."""
        for name in names:
            self._publisher.publish(TENANT, name, self._new())
        for asker in self._askers:
            asker.follow(names)
        for name in names:
            self._everywhere(name, 1)

    def flips(self, names: Sequence[str], count: int) -> list[Flip]:
        """So many flips, LANES adapters at a time; of one adapter one after the other."""

        def lane(number: int) -> list[Flip]:
            mine = names[number::LANES] or names[:1]
            turns = range(number, count, LANES)
            return [self.flip(mine[turn % len(mine)]) for turn, _ in enumerate(turns)]

        with ThreadPoolExecutor(LANES) as pool:
            return [flip for flips in pool.map(lane, range(LANES)) for flip in flips]

    def flip(self, name: str, *, wait: bool = True) -> Flip:
        """Stage, wait for the nodes, activate, and see them follow."""
        staged = self._publisher.stage(TENANT, name, self._new())
        acknowledged = time.monotonic()
        assert staged.record.staged is not None
        barrier = self._barrier(staged)
        seen = barrier.look()
        if wait:
            seen = barrier.wait(Quorum(), timeout_s=READY_S, show=_ignore)
        ready_s = time.monotonic() - acknowledged
        done = self._publisher.activate(TENANT, name, expect_gen=staged.gen)
        return self._judged(name, done, staged.record.staged, ready_s, seen)

    def rollback(self, name: str) -> Flip:
        """Nobody may fetch what every node has served before."""
        before = time.monotonic()
        done = self._publisher.rollback(TENANT, name)
        assert done.record.active is not None
        firsts = self._everywhere(name, done.gen)
        fetched = self._fetched_since(before, done.record.active)
        broken = [f"{node} fetched {name} again for a rollback" for node in fetched]
        return Flip(0.0, max(firsts) - min(firsts), tuple(broken))

    def refuses_a_flip_that_a_node_is_not_ready_for(self, name: str) -> list[str]:
        """With one door shut: NotReady, and nobody serves another generation."""
        with self._one_shut():
            staged = self._publisher.stage(TENANT, name, self._new())
            try:
                self._barrier(staged).wait(Quorum(), timeout_s=SHUT_S, show=_ignore)
            except NotReady:
                moved = [a.node.address for a in self._askers if a.first(name, staged.gen + 1)]
                return [f"{node} serves {name} although a node is not ready" for node in moved]
        return [f"the barrier let {name} through although a node could not fetch it"]

    def is_noticed(self, name: str, *, wait: bool) -> bool:
        """The control: one door is shut, and the flip happens all the same."""
        credulous = patch.object(Stand, "ready", property(lambda stand: True))
        with self._one_shut(), credulous if wait else patch.dict({}):
            staged = self._publisher.stage(TENANT, name, self._new())
            assert staged.record.staged is not None
            seen = self._barrier(staged).look()
            if wait:
                seen = self._barrier(staged).wait(Quorum(), timeout_s=READY_S, show=_ignore)
            done = self._publisher.activate(TENANT, name, expect_gen=staged.gen)
            others = self._askers[:-1]
            wait_until(lambda: all(a.first(name, done.gen) for a in others), within_s=_PATIENCE_S)
        flip = self._judged(name, done, staged.record.staged, 0.0, seen)
        return bool(flip.broken)

    def _judged(
        self, name: str, done: Published, version: VersionRef, ready_s: float, seen: Readiness
    ) -> Flip:
        firsts = self._everywhere(name, done.gen)
        broken = [
            f"{node} fetched {name} generation {done.gen} when another served it already"
            for node in self._fetched_since(min(firsts), version)
        ]
        if len(seen.stands) != len(self._nodes):
            broken.append(f"{name}: {len(seen.stands)} nodes were awaited of {len(self._nodes)}")
        return Flip(ready_s, max(firsts) - min(firsts), tuple(broken))

    def _everywhere(self, name: str, gen: int) -> list[float]:
        """When each node first served `gen`."""
        late: list[str] = []

        def arrived() -> bool:
            late[:] = [a.node.address for a in self._askers if not a.first(name, gen)]
            return not late

        try:
            wait_until(arrived, within_s=_PATIENCE_S)
        except AssertionError:
            troubles = [text for asker in self._askers for text in asker.troubles[:3]]
            raise AssertionError(f"{late} do not serve {name} {gen}: {troubles}") from None
        return [asker.first(name, gen) or 0.0 for asker in self._askers]

    def _fetched_since(self, moment: float, version: VersionRef) -> list[str]:
        return [node.address for node in self._nodes if node.door.fetched_since(moment, version)]

    def _barrier(self, staged: Published) -> Barrier:
        version = staged.record.staged
        assert version is not None
        return Barrier(
            self._registry,
            Subject(TENANT, staged.adapter, staged.gen, version.base, version.vdig),
        )

    @contextmanager
    def _one_shut(self) -> Iterator[None]:
        door = self._nodes[-1].door
        door.shut = True
        try:
            yield
        finally:
            door.shut = False

    def _new(self) -> LocalAdapter:
        return self._base.adapter(next(self._seeds))


@contextmanager
def asked(nodes: Sequence[FleetNode]) -> Iterator[list[Asker]]:
    """Each node under questions."""
    askers = [Asker(node) for node in nodes]
    for asker in askers:
        asker.start()
    try:
        yield askers
    finally:
        for asker in askers:
            asker.stop()


def _ignore(seen: Readiness) -> None:
    return

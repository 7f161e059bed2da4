"""T9: how soon a publish reaches every node, and that no node ever goes back.

Three node processes are asked without pause. Publishes with Redis have to be served within a
second, publishes after Redis was killed within a poll; the delay runs from the publisher's
acknowledgement to the first request that a node served the new generation, 99 of 100 measured.
Sessions carry the generation they saw to the next node as `min_generation`: no answer may be
older. The controls are a node with a stale routing memo, sessions that do not carry their
generation, and the bound of hints held against nodes that only poll.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from adapter_store.commit import Publisher
from adapter_store.coordination import Announcer, NoAnnouncer
from adapter_store.locks import open_lock
from adapter_store.notify import open_announcer
from adapter_store.settings import REDIS_SERVICE, Endpoints
from tests.adapter_store.waiting import wait_until
from tests.chaos.bench import Bench
from tests.chaos.node import STALE_MEMO
from tests.chaos.nodes import ChaosNode, Place, TinyBase, running_nodes
from tests.chaos.row import Row
from tests.conftest import open_endpoint

TENANT = "default"
HINTED, POLLED = 200, 50
HINTED_P99_S, POLLED_P99_S = 1.0, 7.0
OBSERVATIONS = 10_000
NODES, NAMES = 3, 25
SESSIONS = 60
POLL_S = 5.0
WHOLE = 0.1
"""Below this scale one node fewer is started."""
_PATIENCE_S = 60.0


def run(scale: float, seed: int, bench: Bench) -> Row:
    hinted_count, polled_count = max(8, round(HINTED * scale)), max(4, round(POLLED * scale))
    rng = random.Random(seed)
    node_count = NODES if scale >= WHOLE else NODES - 1
    with bench.own_stack() as stack:
        base = TinyBase(bench.folder)
        names = [f"adapter-{n}" for n in range(min(NAMES, polled_count))]
        publish = Publishing(stack.endpoints, base)
        for name in names:
            publish(name)
        with running_nodes(base.checkpoint, [Place(stack.endpoints)] * node_count) as nodes:
            fleet = Fleet(publish, nodes, names, rng)
            fleet.settle()
            hinted = fleet.delays(hinted_count, at_once=2)
            sessions = fleet.sessions(max(6, round(SESSIONS * scale)))
            memo_caught = stale_memo_is_noticed(publish, stack.endpoints, base)
            stack.kill(REDIS_SERVICE)
            fleet.wait_for_polling()
            polled = fleet.delays(polled_count, at_once=len(names), spread_s=POLL_S)
            observations = fleet.observe(round(OBSERVATIONS * min(scale, 1.0)))
            broken = [text for node in nodes for text in node.regressions()]
    broken += sessions.stale
    broken += over("with Redis", hinted, HINTED_P99_S) + over("polling", polled, POLLED_P99_S)
    return Row(
        id="T9",
        cases=hinted_count + polled_count,
        unit="publishes",
        violations=broken,
        controls={
            "a node with a stale routing memo": memo_caught,
            "sessions that do not carry their generation": sessions.stale_without > 0,
            "the bound of hints, held against polling": bool(over("", polled, HINTED_P99_S)),
        },
        faults={"Redis killed": 1},
        seeds=str(seed),
        figures={
            "observations": observations,
            "hinted_p50_s": round(quantile(hinted, 0.5), 3),
            "hinted_p99_s": round(quantile(hinted, 0.99), 3),
            "hinted_max_s": round(max(hinted), 3),
            "polled_p50_s": round(quantile(polled, 0.5), 3),
            "polled_p99_s": round(quantile(polled, 0.99), 3),
            "polled_max_s": round(max(polled), 3),
            "session_answers": sessions.answers,
            "session_answers_stale_without_min_generation": sessions.stale_without,
        },
        notes=f"{node_count} nodes on a tiny checkpoint; {hinted_count} publishes with Redis, "
        f"{polled_count} without",
    )


class Publishing:
    """New content under a name, each time; safe for several threads."""

    def __init__(self, endpoints: Endpoints, base: TinyBase) -> None:
        self._base = base
        self._seeds = itertools.count()
        self._loud = self._publisher(endpoints, open_announcer(endpoints.redis_url))
        self._silent = self._publisher(endpoints, NoAnnouncer())

    def __call__(self, name: str, *, silently: bool = False) -> int:
        """The generation it got; `silently` tells no node."""
        publisher = self._silent if silently else self._loud
        return publisher.publish(TENANT, name, self._base.adapter(next(self._seeds))).gen

    def _publisher(self, endpoints: Endpoints, announcer: Announcer) -> Publisher:
        return Publisher(
            open_endpoint(endpoints),
            lock=open_lock(endpoints.redis_url),
            announcer=announcer,
            actor="chaos",
            warn=lambda text: None,
        )


@dataclass(frozen=True, slots=True)
class Sessions:
    """What clients that went from node to node were answered."""

    answers: int
    stale: list[str]
    stale_without: int
    """Stale answers to the same clients when they did not say what they had seen."""


class Fleet:
    """Nodes that serve the same names."""

    def __init__(
        self,
        publish: Publishing,
        nodes: Sequence[ChaosNode],
        names: Sequence[str],
        rng: random.Random,
    ) -> None:
        self._rng = rng
        self._publish = publish
        self._nodes = nodes
        self._names = names

    def settle(self) -> None:
        """Every node serves every name."""
        reached = [node.until(name, 1) for node in self._nodes for name in self._names]
        for one in reached:
            one.result(_PATIENCE_S)

    def delays(self, publishes: int, *, at_once: int, spread_s: float = 0.0) -> list[float]:
        """Seconds from each acknowledgement to each node's first answer by it.

        A name's next publish waits until the one before has been seen everywhere, and then up to
        `spread_s`, so that publishes fall anywhere between two polls.
        """
        lanes = [list(range(lane, publishes, at_once)) for lane in range(at_once)]

        def lane(number: int) -> Iterator[float]:
            mine = self._names[number::at_once] or [self._names[number]]
            for turn, _ in enumerate(lanes[number]):
                time.sleep(self._rng.random() * spread_s)
                yield from self._delays_of(mine[turn % len(mine)])

        with ThreadPoolExecutor(at_once) as pool:
            found = pool.map(lambda number: list(lane(number)), range(at_once))
            return [delay for delays in found for delay in delays]

    def sessions(self, count: int) -> Sessions:
        """A client sees a publish that no node was told of, then asks every node."""
        stale, without, answers = [], 0, 0
        for _ in range(count):
            name = self._rng.choice(self._names)
            gen = self._publish(name, silently=True)
            for place, node in enumerate(self._nodes):
                answers += 1
                without += node.ask(name, min_generation=0).get("gen", gen) < gen
                said = node.ask(name, min_generation=gen)
                if said.get("gen", gen) < gen:
                    stale.append(f"node {place} served {name} {said} to a client that saw {gen}")
        return Sessions(answers, stale, without)

    def wait_for_polling(self) -> None:
        """Until every node has noticed that there are no hints any more."""
        name = self._names[0]
        gen = self._publish(name, silently=True)
        for one in [node.until(name, gen) for node in self._nodes]:
            one.result(_PATIENCE_S)

    def observe(self, wanted: int) -> int:
        """Until the nodes have answered so many requests; how many they have."""

        def answered() -> int:
            return sum(node.answered() for node in self._nodes)

        wait_until(lambda: answered() >= wanted, within_s=_PATIENCE_S)
        return answered()

    def _delays_of(self, name: str) -> list[float]:
        gen = self._publish(name)
        acknowledged = time.monotonic()
        reached: list[Future[dict[str, Any]]] = [node.until(name, gen) for node in self._nodes]
        return [max(0.0, one.result(_PATIENCE_S)["at"] - acknowledged) for one in reached]


def stale_memo_is_noticed(publish: Publishing, endpoints: Endpoints, base: TinyBase) -> bool:
    """The control: a node that finds old entries by name is seen to go back."""
    name = "memorised"
    publish(name)
    with running_nodes(base.checkpoint, [Place(endpoints, STALE_MEMO)]) as (node,):
        node.until(name, 1).result(_PATIENCE_S)
        gen = publish(name)
        node.until(name, gen).result(_PATIENCE_S)
        wait_until(node.regressions, within_s=_PATIENCE_S)
        return bool(node.regressions())


def over(what: str, delays: Sequence[float], bound_s: float) -> list[str]:
    """The broken promise, if the 99th percentile is past `bound_s`."""
    reached = quantile(delays, 0.99)
    return [f"{what}: p99 {reached:.2f} s is over {bound_s:.0f} s"] if reached > bound_s else []


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]

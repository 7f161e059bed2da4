"""A fleet from its first request to its last: routing, nodes, publishes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import numpy as np

from benchmarks.fleet_sim import ring
from benchmarks.fleet_sim.measured import NodeFigures
from benchmarks.fleet_sim.node import Agenda, Asked, Load, Node
from benchmarks.fleet_sim.tally import Tally
from benchmarks.fleet_sim.tiers import Order, Tiers, segmented
from benchmarks.fleet_sim.traffic import Names, Popularity, Times, poisson

FILL = 3
"""Requests before the first simulated one, as a multiple of all that a node has room for."""
POLICIES = ("ring_bounded", "ring", "least_request", "random")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulated fleet. What is here is assumed, not measured."""

    nodes: int
    adapters: int
    policy: str
    requests: int
    """Counted; half as many go before, uncounted."""
    load: float = 0.6
    """Of what all nodes together can decode."""
    zipf: float = 1.0
    publishes_a_day: float = 1.0
    """Of each adapter."""
    uptime_s: float = 86_400.0
    """How long nodes have been up: what they were asked for since then they know by name."""
    hints: bool = True
    ring_size: int = 65_536
    """Envoy's minimum_ring_size; the default is the gateway's."""
    host_gib: float | None = None
    """Memory for adapters on each host; None: the node's default."""
    balance_percent: int = 125
    order: Callable[[int], Order] = segmented
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        return {**told, "order": "segmented" if self.order is segmented else "plain LRU"}


class Fleet:
    """Built once, run once."""

    def __init__(self, scenario: Scenario, figures: NodeFigures) -> None:
        self.scenario = scenario
        self.tally = Tally(sent=[0] * scenario.nodes)
        self._figures = figures
        self._agenda = Agenda()
        self._load = Load(scenario.nodes)
        self._random = np.random.default_rng(scenario.seed)
        self._chance = Random(scenario.seed).random
        self.nodes = [
            Node(index, figures, self._tiers(), self._agenda, self._load, self.tally)
            for index in range(scenario.nodes)
        ]
        self.popularity = Popularity.zipf(scenario.adapters, scenario.zipf)
        keys = ring.hashes([f"a{number}" for number in range(scenario.adapters)])
        circle = ring.Ring(addresses(scenario.nodes), minimum_size=scenario.ring_size)
        self.owners = circle.owners(keys)
        self._router = self._make_router(keys)
        self._owners = self.owners.tolist()
        self._by_ring = scenario.policy.startswith("ring")
        sharing = 1 if self._by_ring else scenario.nodes
        asked_for = self.rate * scenario.uptime_s * self.popularity.shares / sharing
        self._never_asked = np.exp(-asked_for).tolist()
        """How likely nobody asked the node where an adapter's requests go."""
        self.seconds = 0.0
        """Of the counted part."""

    @property
    def rate(self) -> float:
        """Requests a second to all nodes."""
        return self.scenario.nodes * self._figures.capacity * self.scenario.load

    def run(self) -> Tally:
        """Fill the tiers, let queues and bounds settle, count, and answer all that was taken."""
        self._fill()
        settle = self.scenario.requests / 2 / self.rate
        self.seconds = self.scenario.requests / self.rate
        until = settle + self.seconds
        arrivals = poisson(self.rate, until, self._random)
        publishes = self.scenario.adapters * self.scenario.publishes_a_day / 86_400
        self._play(
            arrivals,
            self.popularity.draw(len(arrivals), self._random),
            poisson(publishes, until, self._random),
            settle,
        )
        self._agenda.run_until(math.inf)
        return self.tally

    def check_integrity(self) -> None:
        """Raises AssertionError when requests or tiers do not add up after a run."""
        tally = self.tally
        assert tally.arrived == sum(tally.sent) == tally.answers + tally.refused
        assert tally.arrived == sum(tally.places.values()) + tally.joined_loads + tally.refused
        assert self._load.total == sum(self._load.of) == 0
        for node in self.nodes:
            node.tiers.check_integrity()
            assert not any(slot.leases for slot in node.tiers.device.values())

    def _tiers(self) -> Tiers:
        figures = self._figures
        given = self.scenario.host_gib
        return Tiers(
            device_room=figures.device_room,
            host_room=figures.host_room
            if given is None
            else int(given * 2**30 / figures.adapter_bytes),
            disk_room=figures.disk_room,
            order=self.scenario.order,
        )

    def _make_router(self, keys: ring.Hashes) -> ring.Router:
        scenario = self.scenario
        if scenario.policy == "ring":
            return ring.RingHash(self.owners)
        if scenario.policy == "ring_bounded":
            return ring.BoundedRingHash(
                self.owners, keys, nodes=scenario.nodes, balance_percent=scenario.balance_percent
            )
        if scenario.policy == "least_request":
            return ring.LeastRequest(scenario.nodes, scenario.seed)
        if scenario.policy == "random":
            return ring.Random(scenario.nodes, scenario.seed)
        raise ValueError(f"{scenario.policy!r} is none of {', '.join(POLICIES)}")

    def _fill(self) -> None:
        """The tiers as traffic would have left them, without the time that it takes."""
        figures, first = self._figures, self.nodes[0].tiers
        each = FILL * (figures.device_room + first.host_room + figures.disk_room)
        drawn = self.popularity.draw(each * self.scenario.nodes, self._random)
        if self._by_ring:
            places = self.owners[drawn]
        else:
            places = self._random.integers(0, self.scenario.nodes, len(drawn))
        # Node after node: what one is asked does not depend on the others, and memory stays near.
        order = np.argsort(places, kind="stable")
        for adapter, place in zip(drawn[order].tolist(), places[order].tolist(), strict=True):
            self.nodes[place].tiers.touch(adapter)

    def _play(self, arrivals: Times, names: Names, publishes: Times, settle: float) -> None:
        news = iter(publishes.tolist())
        next_news = next(news, math.inf)
        for now, adapter in zip(arrivals.tolist(), names.tolist(), strict=True):
            while next_news <= now:
                self._agenda.run_until(next_news)
                self._publish(next_news, counted=next_news >= settle)
                next_news = next(news, math.inf)
            self._agenda.run_until(now)
            self._send(adapter, now, counted=now >= settle)

    def _send(self, adapter: int, now: float, *, counted: bool) -> None:
        load, tally = self._load, self.tally
        place = self._router.choose(adapter, load.of, load.total)
        at_home = place == self._owners[adapter]
        # What a node got beyond another's bound it may not have seen before.
        new = self._chance() < self._never_asked[adapter] if at_home or not self._by_ring else True
        taken = self.nodes[place].offer(Asked(adapter, now, counted, new), now)
        if counted:
            tally.arrived += 1
            tally.sent[place] += 1
            tally.refused += not taken
            tally.at_home += at_home

    def _publish(self, now: float, *, counted: bool) -> None:
        adapter = int(self._random.integers(self.scenario.adapters))
        figures = self._figures
        spread = figures.hinted if self.scenario.hints else figures.polled
        self.tally.published += counted
        for node in self.nodes:
            node.publish(adapter, now, spread.at(self._random.random()), counted=counted)


def addresses(nodes: int) -> list[str]:
    """As a headless Service would give them."""
    return [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:50051" for i in range(1, nodes + 1)]

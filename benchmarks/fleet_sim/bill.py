"""What a fleet asks of S3 and Redis each second, and what a month of it costs."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fleet_sim.counted import POLL_S, Acts, Requests
from benchmarks.fleet_sim.fleet import Fleet
from benchmarks.fleet_sim.measured import NodeFigures
from benchmarks.fleet_sim.tiers import Place
from inference_node.rpc.herald import HEARTBEAT, PERIOD

PRICES = Path(__file__).parent / "prices.toml"


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars."""

    node_hour: float
    s3_reads_1000: float
    s3_writes_1000: float
    s3_gb_month: float
    redis_million: float
    hours_a_month: float


def read_prices(path: Path = PRICES) -> Prices:
    said = tomllib.loads(path.read_text())
    names = ("node_hour", "s3_reads_1000", "s3_writes_1000", "s3_gb_month", "redis_million")
    dollars: dict[str, float] = {name: said[name]["dollars"] for name in names}
    return Prices(**dollars, hours_a_month=said["hours_a_month"])


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests a second of the whole fleet, by what they are for."""

    s3: Mapping[str, float]
    s3_reads: float
    s3_writes: float
    redis: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "s3_requests_s": {name: round(value, 2) for name, value in self.s3.items()},
            "s3_requests_s_total": round(sum(self.s3.values()), 2),
            "redis_commands_s": {name: round(value, 2) for name, value in self.redis.items()},
            "redis_commands_s_total": round(sum(self.redis.values()), 2),
        }


def demand(fleet: Fleet, figures: NodeFigures, acts: Acts) -> Demand:
    """Of the counted part of a run.

    Polling is at its most: every name on a device in every period, although one that a hint or a
    request had looked up meanwhile would wait.
    """
    tally, scenario, seconds = fleet.tally, fleet.scenario, fleet.seconds
    resident = sum(len(node.tiers.device) for node in fleet.nodes)
    period = figures.poll_s if scenario.hints else figures.poll_without_hints_s
    publishes = scenario.adapters * scenario.publishes_a_day / 86_400
    times: dict[str, tuple[float, Requests]] = {
        "resolve": (tally.resolved_cold / seconds, acts.resolve_cold),
        "refresh": (tally.resolved_known / seconds, acts.refresh),
        "fetch": (tally.places[Place.STORE] / seconds, acts.fetch),
        "poll": (resident / period, acts.refresh),
        "publish": (publishes, acts.publish),
        "learn": (len(tally.swap_s) / seconds, acts.learn),
        "fetch_news": (len(tally.swap_s) / seconds, acts.fetch),
    }
    redis = {}
    if scenario.hints:
        redis["wait for hints"] = scenario.nodes * polls_a_second(publishes) * acts.poll.redis
        redis["publish"] = publishes * acts.publish.redis
        loads = sum(tally.places.values()) - tally.places[Place.DEVICE] + len(tally.swap_s)
        tells = tells_a_second(loads / seconds / scenario.nodes)
        # What is told takes the lease along, so leases alone are renewed where nothing changes.
        redis["tell the fleet"] = scenario.nodes * tells * acts.tell.redis
        redis["renew leases"] = scenario.nodes * max(tells, 1 / HEARTBEAT) * acts.announce.redis
    return Demand(
        {name: often * act.total for name, (often, act) in times.items()},
        sum(often * act.reads for often, act in times.values()),
        sum(often * act.writes for often, act in times.values()),
        redis,
    )


def polls_a_second(hints: float) -> float:
    """Of one node: a wait ends with the first hint or after POLL_S, and the next begins.

    With hints at random moments its mean length is (1 - exp(-hints x POLL_S)) / hints.
    """
    if hints == 0:
        return 1 / POLL_S
    return hints / -math.expm1(-hints * POLL_S)


def tells_a_second(changes: float) -> float:
    """Of one node: it looks every PERIOD, and tells when anything has changed since."""
    return -math.expm1(-changes * PERIOD) / PERIOD


def cost(fleet: Fleet, figures: NodeFigures, needed: Demand, prices: Prices) -> dict[str, float]:
    """US dollars for a month."""
    seconds = prices.hours_a_month * 3600
    parts = {
        "nodes": fleet.scenario.nodes * prices.node_hour * prices.hours_a_month,
        "s3_requests": seconds
        * (needed.s3_reads * prices.s3_reads_1000 + needed.s3_writes * prices.s3_writes_1000)
        / 1000,
        "s3_storage": fleet.scenario.adapters * figures.adapter_bytes / 1e9 * prices.s3_gb_month,
        "redis": seconds * sum(needed.redis.values()) / 1e6 * prices.redis_million,
    }
    tokens = fleet.rate * seconds * figures.new_tokens
    return {
        **{name: round(value, 2) for name, value in parts.items()},
        "total": round(sum(parts.values()), 2),
        "per_million_tokens": round(1e6 * sum(parts.values()) / tokens, 4),
    }

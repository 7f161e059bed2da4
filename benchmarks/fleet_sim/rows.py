"""Which fleets are simulated, and what is said of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.fleet_sim.bill import Prices, cost, demand
from benchmarks.fleet_sim.counted import Acts
from benchmarks.fleet_sim.fleet import POLICIES, Fleet, Scenario
from benchmarks.fleet_sim.measured import NodeFigures
from benchmarks.fleet_sim.tally import percentiles
from benchmarks.fleet_sim.tiers import LeastRecent, Place

SIZES = ((3, 2_000), (10, 10_000), (100, 100_000), (1_000, 1_000_000))
REQUESTS = 200_000
MOST_REQUESTS = 300_000
HOST_GIB = 8
ENVOY_DEFAULT_RING = 1_024
HOURLY = 24.0


def scenarios(share: float = 1.0) -> dict[str, Scenario]:
    """Every row by its name; `share` of the requests for a short run."""
    found: dict[str, Scenario] = {}
    for nodes, adapters in SIZES:
        requests = int(share * (MOST_REQUESTS if nodes == SIZES[-1][0] else REQUESTS))
        for policy in POLICIES:
            found[f"{nodes} nodes, {policy}"] = Scenario(nodes, adapters, policy, requests)
    most, middle = found["1000 nodes, ring_bounded"], found["100 nodes, ring_bounded"]
    hourly = replace(middle, publishes_a_day=HOURLY)
    return {
        **found,
        "1000 nodes, ring_bounded, 1,024 points": replace(most, ring_size=ENVOY_DEFAULT_RING),
        f"1000 nodes, ring_bounded, {HOST_GIB} GiB host": replace(most, host_gib=HOST_GIB),
        f"1000 nodes, random, {HOST_GIB} GiB host": replace(
            most, policy="random", host_gib=HOST_GIB
        ),
        "100 nodes, ring_bounded, plain LRU": replace(middle, order=LeastRecent),
        "100 nodes, ring_bounded, hourly publishes": hourly,
        "100 nodes, ring_bounded, hourly publishes, no Redis": replace(hourly, hints=False),
    }


def measure(
    name: str, scenario: Scenario, figures: NodeFigures, acts: Acts, prices: Prices
) -> dict[str, Any]:
    """One row. Raises AssertionError when a request was lost or a tier lost count."""
    started = time.perf_counter()
    fleet = Fleet(scenario, figures)
    tally = fleet.run()
    fleet.check_integrity()
    needed = demand(fleet, figures, acts)
    per = 1 / tally.arrived
    return {
        "row": name,
        **scenario.as_json(),
        "requests": tally.arrived,
        "requests_s": round(fleet.rate, 1),
        "simulated_s": round(fleet.seconds, 1),
        "found": {place.value: round(n * per, 4) for place, n in tally.places.items()},
        "found_loading": round(tally.joined_loads * per, 4),
        "hit_rate": round((tally.places[Place.DEVICE] + tally.places[Place.HOST]) * per, 4),
        "at_home": round(tally.at_home * per, 4),
        "refused": round(tally.refused * per, 5),
        "load": _spread(tally.sent),
        "wait": percentiles(tally.waits_s, 50, 99, 99.9),
        "latency": percentiles(tally.latencies_s, 50, 99, 99.9),
        "staleness": {
            "publishes": tally.published,
            "nodes_that_followed": len(tally.swap_s),
            **percentiles(tally.swap_s, 50, 99, 100),
            "stale_answers": round(len(tally.stale_s) * per, 7),
            "stale_answer_age": percentiles(tally.stale_s, 50, 100),
        },
        **needed.as_json(),
        "cost_month": cost(fleet, figures, needed, prices),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _spread(sent: Sequence[int]) -> dict[str, float]:
    """How evenly nodes are asked: 1 is the mean."""
    share = np.asarray(sent) / np.mean(sent)
    return {
        "max_over_mean": round(float(share.max()), 3),
        "p99_over_mean": round(float(np.percentile(share, 99)), 3),
        "deviation_over_mean": round(float(share.std()), 3),
    }

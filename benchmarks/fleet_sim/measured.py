"""One node and its store, read from the committed result files and from the node's own defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference_node.cli.settings import MIB, NodeSettings
from inference_node.config import EngineConfig

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Propagation:
    """Seconds from a publish to the moment a node serves it: quantiles at 0.5, 0.99 and 1."""

    p50: float
    p99: float
    most: float

    def at(self, quantile: float) -> float:
        """Straight lines between what was measured."""
        places, seconds = (0.0, 0.5, 0.99, 1.0), (0.0, self.p50, self.p99, self.most)
        return float(np.interp(quantile, places, seconds))


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """What one node can do. Times in seconds; rooms in adapters."""

    tokens_s: tuple[float, ...]
    """All requests together, by requests at once; none at 0."""
    new_tokens: int
    """A request's, with its prompt inside the rate."""
    adapter_bytes: int
    copy_s: float
    """From the host to the device."""
    fetch_s: float
    """From the store to the host, checked; also what a read from disk is given."""
    resolve_s: float
    """A name that the node does not know."""
    hinted: Propagation
    polled: Propagation
    """Without Redis."""
    device_room: int
    host_room: int
    disk_room: int
    max_queue: int
    fetch_threads: int
    poll_s: float
    poll_without_hints_s: float

    @property
    def max_rows(self) -> int:
        return len(self.tokens_s) - 1

    @property
    def capacity(self) -> float:
        """Requests a second with every row taken."""
        return self.tokens_s[-1] / self.new_tokens

    def as_json(self) -> dict[str, Any]:
        """The rates only where they were measured."""
        rates = {rows: self.tokens_s[rows] for rows in (1, 4, 16, 64) if rows <= self.max_rows}
        return {**asdict(self), "tokens_s": rates, "capacity_requests_s": round(self.capacity, 2)}


def read(results: Path = RESULTS) -> NodeFigures:
    """Raises KeyError when a result file lacks a figure, StopIteration when a row."""
    cpu, store, chaos = (
        json.loads((results / f"{name}.json").read_text()) for name in ("cpu", "store", "chaos")
    )
    engine = EngineConfig(base_model="-")
    weight: int = cpu["memory"]["adapter_bytes"]
    spread = next(row for row in chaos["rows"] if row["id"] == "T9")["figures"]
    disk = int(NodeSettings.model_fields["cache_mb"].default) * MIB
    return NodeFigures(
        tokens_s=_rates(cpu["concurrency"], engine.max_rows),
        new_tokens=cpu["configuration"]["new_tokens"],
        adapter_bytes=weight,
        copy_s=weight / cpu["machine"]["copy_bytes_s"],
        fetch_s=_fetch_s(store["sizes"], weight),
        resolve_s=store["scale"]["among_10000"]["resolve_ms_p50"] / 1000,
        hinted=_propagation(spread, "hinted"),
        polled=_propagation(spread, "polled"),
        # One adapter's pages are the headroom that newcomers leave.
        device_room=engine.pool_bytes // weight - 1,
        host_room=engine.host_bytes // weight,
        disk_room=disk // weight,
        max_queue=engine.max_queue,
        fetch_threads=engine.fetch_threads,
        poll_s=engine.poll_seconds,
        poll_without_hints_s=engine.poll_seconds_without_hints,
    )


def _propagation(figures: Mapping[str, float], way: str) -> Propagation:
    return Propagation(*(figures[f"{way}_{cut}_s"] for cut in ("p50", "p99", "max")))


def _rates(ladder: Sequence[Mapping[str, float]], max_rows: int) -> tuple[float, ...]:
    """Tokens a second with 0 to `max_rows` requests, each on an adapter of its own."""
    rungs = sorted((one["requests"], one["tokens_s"]) for one in ladder if one["adapters"])
    requests, rates = zip(*rungs, strict=True)
    between = np.interp(np.arange(1, max_rows + 1), requests, rates)
    return (0.0, *(float(rate) for rate in between))


def _fetch_s(sizes: Sequence[Mapping[str, Any]], weight: int) -> float:
    mib, seconds = zip(
        *((one["mib"], one["median_seconds"]["fetch"]) for one in sizes), strict=True
    )
    return float(np.interp(weight / MIB, mib, seconds))

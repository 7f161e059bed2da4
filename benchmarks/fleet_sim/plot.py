"""Hits and load against the size of the fleet, by policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fleet_sim.fleet import POLICIES
from benchmarks.fleet_sim.rows import SIZES
from benchmarks.line_chart import Axis, Chart, Line
from benchmarks.line_chart import draw as draw_charts

NAMES = {
    "ring_bounded": ("ring, bounded", "#1f6feb"),
    "ring": ("ring alone", "#8250df"),
    "least_request": ("least request", "#d4760a"),
    "random": ("random", "#57606a"),
}


def draw(path: Path, rows: Sequence[Mapping[str, Any]], *, machine: str) -> None:
    """Of the rows that differ in size and policy alone."""
    plain = [row for row in rows if row["row"] == f"{row['nodes']} nodes, {row['policy']}"]
    sizes = tuple(float(nodes) for nodes, _ in SIZES)
    x = Axis(sizes, "nodes; 2,000, 10,000, 100,000 and 1,000,000 adapters", logarithmic=True)
    charts = [
        Chart(
            title="Requests that find their adapter on the node, %",
            note=machine,
            x=x,
            y=Axis((0, 20, 40, 60, 80, 100)),
            lines=_lines(plain, lambda row: 100 * row["hit_rate"]),
        ),
        Chart(
            title="The busiest node's share of requests over the mean",
            note="logarithmic; 1.25 is the bound",
            x=x,
            y=Axis((1, 10, 100), logarithmic=True),
            lines=_lines(plain, lambda row: row["load"]["max_over_mean"]),
        ),
    ]
    draw_charts(path, charts)


def _lines(rows: Sequence[Mapping[str, Any]], figure: Callable[[Any], float]) -> list[Line]:
    return [
        Line(
            *NAMES[policy],
            [[row["nodes"], figure(row)] for row in rows if row["policy"] == policy],
        )
        for policy in POLICIES
    ]

"""Line charts as an SVG that needs nothing to be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 48, 52
_GREY, _INK, _RULE = "#57606a", "#1f2328", "#d8dee4"


@dataclass(frozen=True, slots=True)
class Axis:
    """From the first tick to the last, both drawn."""

    ticks: tuple[float, ...]
    label: str = ""
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0 at the first tick, 1 at the last."""
        first, last = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            return math.log(value / first) / math.log(last / first)
        return (value - first) / (last - first)


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    colour: str
    points: Sequence[Sequence[float]]
    """[x, y], in any order."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One panel. Lines without points are left out."""

    title: str
    note: str
    x: Axis
    y: Axis
    lines: Sequence[Line]


def round_ticks(most: float) -> tuple[float, ...]:
    """From 0 to the next round number, in five steps."""
    unit = 10 ** math.floor(math.log10(most))
    top = next(unit * step for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if unit * step >= most)
    return tuple(top * step / 5 for step in range(6))


def draw(path: Path, charts: Sequence[Chart]) -> None:
    """Write the charts below one another."""
    height = HEIGHT * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for place, chart in enumerate(charts):
        parts += [f'<g transform="translate(0 {HEIGHT * place})">', *_panel(chart), "</g>"]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _panel(chart: Chart) -> list[str]:
    parts = [
        f'<text x="{LEFT}" y="20" font-size="15" fill="{_INK}">{chart.title}</text>',
        f'<text x="{LEFT}" y="37" fill="{_GREY}">{chart.note}</text>',
        *_grid(chart),
    ]
    ends = []
    for line in chart.lines:
        points = sorted(line.points, key=lambda point: point[0])
        if not points:
            continue
        spots = [(_x(chart, x), _y(chart, y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2.5"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.colour}"/>' for x, y in spots
        ]
        ends.append((*spots[-1], line.name, line.colour))
    return parts + _names(ends)


def _x(chart: Chart, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * chart.x.place(value)


def _y(chart: Chart, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * chart.y.place(value)


def _grid(chart: Chart) -> list[str]:
    parts = []
    for value in chart.y.ticks:
        y = _y(chart, value)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{_RULE}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" '
            f'fill="{_GREY}">{value:g}</text>'
        )
    parts += [
        f'<text x="{_x(chart, value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" '
        f'fill="{_GREY}">{value:,g}</text>'
        for value in chart.x.ticks
    ]
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle" '
        f'fill="{_INK}">{chart.x.label}</text>'
    )
    return parts


def _names(ends: Sequence[tuple[float, float, str, str]]) -> list[str]:
    """A name at the end of each line, apart where two would overlap, none below the axis."""
    ordered = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, *_ in ordered:
        places.append(max(y + 4, places[-1] + 15 if places else 0.0))
    low = HEIGHT - BOTTOM + 4.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], low)
        low = places[i] - 15
    return [
        f'<text x="{x + 8:.1f}" y="{place:.1f}" fill="{colour}" font-weight="600">{name}</text>'
        for (x, _, name, colour), place in zip(ordered, places, strict=True)
    ]

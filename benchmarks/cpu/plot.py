"""Throughput against the number of adapters, as an SVG that needs nothing to be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 48, 52
MOST = 1000
NAMES = {
    "ours": ("lorapool", "#1f6feb"),
    "vllm": ("vLLM CPU", "#d4760a"),
    "peft_mixed": ("PEFT mixed batch", "#8250df"),
    "peft_sequential": ("PEFT set_adapter", "#57606a"),
}


def draw(path: Path, curves: Mapping[str, Sequence[Sequence[float]]], *, machine: str) -> None:
    """`curves` are [adapters, tokens a second] by system; adapters lie on a logarithmic axis."""
    top = _nice(max(rate for points in curves.values() for _, rate in points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="15" fill="#1f2328">'
        "Tokens a second against the number of adapters in use</text>",
        f'<text x="{LEFT}" y="37" fill="#57606a">{machine}</text>',
        *_grid(top),
    ]
    ends = []
    for system, (name, colour) in NAMES.items():
        points = sorted(curves.get(system, ()), key=lambda point: point[0])
        if not points:
            continue
        spots = [(_x(adapters), _y(rate, top)) for adapters, rate in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in spots]
        ends.append((*spots[-1], name, colour))
    parts += _labels(ends)
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n")


def _x(adapters: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log(adapters) / math.log(MOST)


def _y(rate: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / top


def _nice(most: float) -> float:
    """The next round number, with room for five lines of the grid."""
    unit = 10 ** math.floor(math.log10(most))
    return next(unit * step for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if unit * step >= most)


def _grid(top: float) -> list[str]:
    parts = []
    for line in range(6):
        rate = top * line / 5
        y = _y(rate, top)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#d8dee4"/>'
        )
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#57606a">{rate:g}</text>'
        )
    for adapters in (1, 4, 16, 64, 256, 1000):
        parts.append(
            f'<text x="{_x(adapters):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" '
            f'fill="#57606a">{adapters}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle" '
        'fill="#1f2328">adapters in use, 16 requests at a time</text>'
    )
    return parts


def _labels(ends: Sequence[tuple[float, float, str, str]]) -> list[str]:
    """A name at the end of each line, moved down where two would overlap."""
    parts, lowest = [], float("-inf")
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        place = max(y + 4, lowest + 15)
        lowest = place
        parts.append(
            f'<text x="{x + 8:.1f}" y="{place:.1f}" fill="{colour}" font-weight="600">{name}</text>'
        )
    return parts

"""Throughput against the number of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.line_chart import Axis, Chart, Line, round_ticks
from benchmarks.line_chart import draw as draw_charts

NAMES = {
    "ours": ("lorapool", "#1f6feb"),
    "vllm": ("vLLM CPU", "#d4760a"),
    "peft_mixed": ("PEFT mixed batch", "#8250df"),
    "peft_sequential": ("PEFT set_adapter", "#57606a"),
}


def draw(path: Path, curves: Mapping[str, Sequence[Sequence[float]]], *, machine: str) -> None:
    """`curves` are [adapters, tokens a second] by system; adapters lie on a logarithmic axis."""
    chart = Chart(
        title="Tokens a second against the number of adapters in use",
        note=machine,
        x=Axis(
            (1, 4, 16, 64, 256, 1000), "adapters in use, 16 requests at a time", logarithmic=True
        ),
        y=Axis(round_ticks(max(rate for points in curves.values() for _, rate in points))),
        lines=[
            Line(name, colour, curves.get(system, ())) for system, (name, colour) in NAMES.items()
        ],
    )
    draw_charts(path, [chart])

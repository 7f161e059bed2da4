"""Which form of a linear's weights serves a step, chosen from measured times. Pure Python.

Every linear keeps its 4-bit weights. Some also keep them written out in bfloat16, as many as a
memory budget allows, where that saves the most time for its bytes; each number of rows then takes
whichever form was faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROWS = (1, 4, 8, 16, 32, 64, 128, 512)
"""Numbers of rows that are measured; others take the choice of the next one up."""


@dataclass(frozen=True, slots=True, order=True)
class LinearShape:
    out_features: int
    in_features: int

    @property
    def bytes_written_out(self) -> int:
        return 2 * self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one product of one linear, by both forms of its weights."""

    shape: LinearShape
    rows: int
    packed: float
    written_out: float


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The choice for every shape: numbers of rows at which the written-out weights serve."""

    written_out: Mapping[LinearShape, frozenset[int]]
    """Shapes that are not in it keep their 4-bit weights alone."""

    def takes_written_out(self, shape: LinearShape, rows: int) -> bool:
        chosen = self.written_out.get(shape, frozenset())
        return next((size for size in ROWS if size >= rows), ROWS[-1]) in chosen


def choose(
    timings: Iterable[Timing], counts: Mapping[LinearShape, int], *, budget: int
) -> Dispatch:
    """The shapes to write out within `budget` bytes; `counts` says how many linears each has.

    Best first by seconds saved, over one step of every number of rows, for each byte.
    """
    saved: dict[LinearShape, dict[int, float]] = {}
    for timing in timings:
        gain = timing.packed - timing.written_out
        if gain > 0:
            saved.setdefault(timing.shape, {})[timing.rows] = gain
    best = sorted(
        saved, key=lambda shape: (-sum(saved[shape].values()) / shape.bytes_written_out, shape)
    )
    chosen: dict[LinearShape, frozenset[int]] = {}
    for shape in best:
        cost = shape.bytes_written_out * counts[shape]
        if cost <= budget:
            budget -= cost
            chosen[shape] = frozenset(saved[shape])
    return Dispatch(chosen)


def read_timings(path: Path, shapes: Sequence[LinearShape]) -> list[Timing] | None:
    """Times measured earlier; None when there are none of just these shapes and numbers of rows."""
    try:
        raw = json.loads(path.read_text())
        found = [
            Timing(LinearShape(*map(int, entry["shape"])), *map(entry.__getitem__, _FIELDS))
            for entry in raw
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    wanted = {(shape, rows) for shape in shapes for rows in ROWS}
    return found if {(timing.shape, timing.rows) for timing in found} == wanted else None


def write_timings(path: Path, timings: Iterable[Timing]) -> None:
    """Keep measured times for the next start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "shape": [timing.shape.out_features, timing.shape.in_features],
            **{name: getattr(timing, name) for name in _FIELDS},
        }
        for timing in timings
    ]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(entries))
    partial.replace(path)


_FIELDS = ("rows", "packed", "written_out")

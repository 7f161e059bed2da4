"""Times of work on a card."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

_REPEATS = 7


def seconds_on_card(run: Callable[[], object]) -> float:
    """Median seconds between the beginning and the end of `run` on the current stream."""
    taken: list[float] = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1000)
    return statistics.median(taken)

"""What this machine's memory and cores give a program that does nothing else: the floors' units."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.cpu.wire import serve

BYTES = 512 * 2**20
SIDE = 2048
TRIES = 8


def rates() -> dict[str, float]:
    """Best of some tries: bytes a second read and copied, bf16 operations a second."""
    source = torch.ones(BYTES // 4)
    target = torch.empty_like(source)
    left = torch.randn(SIDE, SIDE).bfloat16()
    return {
        "read_bytes_s": BYTES / _best(source.sum),
        "copy_bytes_s": BYTES / _best(lambda: target.copy_(source)),
        "bf16_operations_s": 2 * SIDE**3 / _best(lambda: left @ left),
    }


def _best(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _start() -> tuple[Any, Mapping[str, Callable[..., Any]]]:
    return {}, {"rates": rates}


if __name__ == "__main__":
    serve(_start)

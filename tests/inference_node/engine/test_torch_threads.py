"""Nobody beside the engine thread has OpenMP workers (decision 0006)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import torch
from inference_node.engine import runner

runner.CORES = 2
runner.leave_the_cores()
if sys.argv[1] == "seeded":
    runner.leave_the_cores = lambda: None
engine = ThreadPoolExecutor(1)
engine.submit(runner.Runner.take_the_cores, object()).result()
before = len(os.listdir("/proc/self/task"))

def work():
    torch.zeros(4_000_000).add_(1)
    return torch.get_num_threads()

in_engine = engine.submit(work).result()
with_workers = len(os.listdir("/proc/self/task"))
loader = ThreadPoolExecutor(1)
beside = loader.submit(work).result()
after = len(os.listdir("/proc/self/task"))
print(in_engine, beside, with_workers - before, after - with_workers - 1)
"""


def torch_threads(how: str) -> list[int]:
    """Torch's threads in the engine and beside it, and the workers either of them brought."""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=env, capture_output=True, text=True, check=True
    )
    return [int(word) for word in ran.stdout.split()]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads through /proc")
def test_a_thread_that_loads_adapters_brings_no_workers() -> None:
    assert torch_threads("as it is") == [2, 1, 1, 0]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads through /proc")
def test_seeded_the_engines_thread_count_is_everyones() -> None:
    assert torch_threads("seeded") == [2, 2, 1, 1]

"""What the engine loses to other programs that want its cores, by how long its threads spin.

python -m benchmarks.busy_cores: 16 requests at once without adapters, alone and beside as many busy
programs as there are cores, with OpenMP's own wait at a barrier and with the one that a node sets.
Five times in turn, medians; seven minutes, most of them OpenMP's own wait.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cpu.systems import Shape, tokens_a_second
from benchmarks.cpu.wire import Worker
from benchmarks.machine import machine
from inference_node.model.default_base import ensure_default_base
from inference_node.openmp import SPINS

RESULT = Path(__file__).parent / "results" / "busy_cores.json"
WAITS = {"openmp_default": "300000", "node": SPINS}
SHAPE = Shape(prompt=32, new=16)
REQUESTS = 16
REPETITIONS = 5


def main() -> int:
    found: dict[str, dict[str, list[float]]] = {
        wait: {"alone": [], "beside_busy_programs": []} for wait in WAITS
    }
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        settings = {"base": str(ensure_default_base()), "pool_adapters": 16, "host_adapters": 16}
        workers = {}
        for wait, spins in WAITS.items():
            argv = [sys.executable, "-m", "benchmarks.cpu.ours", json.dumps(settings)]
            env = {"GOMP_SPINCOUNT": spins}
            workers[wait] = Worker(argv, env=env, log=Path(scratch) / f"{wait}.log")
            stack.callback(workers[wait].close)
        for repetition in range(REPETITIONS + 1):
            for wait, worker in workers.items():
                alone = _rate(worker, repetition)
                with _busy_cores():
                    beside = _rate(worker, repetition)
                print(f"{repetition} {wait}: {alone:.1f} alone, {beside:.1f}", file=sys.stderr)
                if repetition:  # The first warms up.
                    found[wait]["alone"].append(round(alone, 1))
                    found[wait]["beside_busy_programs"].append(round(beside, 1))
    document = {"tokens_a_second": found, **_ratios(found), "spins": WAITS, "machine": machine()}
    RESULT.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _rate(worker: Worker, seed: int) -> float:
    """Tokens a second of all requests together."""
    prompts = SHAPE.prompts(REQUESTS, seed=seed)
    answer = worker.ask("generate", prompts=prompts, adapters=[""] * REQUESTS, new=SHAPE.new)
    return tokens_a_second(answer, requests=REQUESTS, new=SHAPE.new)


@contextmanager
def _busy_cores() -> Iterator[None]:
    cores = len(os.sched_getaffinity(0))
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _ratios(found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    kept = {
        wait: {case: statistics.median(rates) for case, rates in cases.items()}
        for wait, cases in found.items()
    }
    return {
        "kept_beside_busy_programs": {
            wait: round(rates["beside_busy_programs"] / rates["alone"], 3)
            for wait, rates in kept.items()
        },
        "node_over_openmp_default": {
            case: round(kept["node"][case] / kept["openmp_default"][case], 2)
            for case in ("alone", "beside_busy_programs")
        },
    }


if __name__ == "__main__":
    sys.exit(main())

"""One run: what the card is, the checks, and the rows in order of what they are worth."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import rows
from benchmarks.gpu.checks import check_attention, check_linears, check_lora, check_steps
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import Node
from benchmarks.gpu.peft_peer import beside_peft
from benchmarks.gpu.results import Figure, Results
from benchmarks.gpu.sizes import SIZES
from benchmarks.gpu.swaps import swaps
from inference_node.kernels.backend import choose
from inference_node.kernels.quant4 import Dispatch, GemmLinear
from inference_node.kernels.quant4.dispatch import ROWS

WRONG = 3
"""Exit status when a kernel is not its reference: nothing is timed then."""


def run(options: argparse.Namespace, *, about: dict[str, Any]) -> int:
    """Check, measure, write. Returns the exit status."""
    device = torch.device(options.device)
    size = SIZES["tiny" if options.tiny else options.size]
    results = Results(options.out, about | _card(device), seconds=options.seconds)
    clock = Clock(device, repeats=1 if options.tiny else 20)
    bandwidth = clock.copy_bandwidth()
    results.note("copy_gb_s", bandwidth / 1e9)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s (read and written)", flush=True)
    if not clock.cuda:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        backend = choose("fused", device=device, folder=Path(folder))
    results.note("kernels", backend.name)
    for check in (*check_lora(size, backend, device), *check_attention(size, backend, device)):
        _note(results, check)
    node = Node(size, backend, device, rows=max(size.rows))
    for check in (*check_linears(node), *check_steps(node, min(8, max(size.rows)))):
        _note(results, check)
    if not results.checks_hold:
        print("a kernel is not its reference: nothing is timed", flush=True)
        return WRONG
    dispatch = _dispatch(device)
    measured: dict[str, tuple[Callable[[], list[Figure]], float]] = {
        "steps": (partial(rows.steps, node, clock, bandwidth), 30),
        "lora": (partial(rows.lora_alone, node, clock, bandwidth), 20),
        "graphs": (partial(rows.graph_over_eager, node, clock), 15),
        "linears": (partial(rows.linears_alone, node, clock, dispatch), 40),
        "promotion": (partial(rows.promotion, node, clock), 15),
        "idle": (partial(rows.idle_share, node, clock), 10),
        "own linears": (partial(rows.own_linears, node, clock, dispatch), 40),
        "capacity": (partial(rows.capacity, node, clock), 30),
        "swaps": (partial(swaps, node, clock), 70),
        "peft": (partial(beside_peft, node, clock), 90),
    }
    wanted = options.rows.split(",") if options.rows else list(measured)
    for name in wanted:
        measure, needs = measured[name]
        results.row(name, measure, needs=0 if options.tiny else needs)
        node.forget()
        if clock.cuda:
            torch.cuda.empty_cache()
    return 0 if results.complete else 1


def _note(results: Results, check: Any) -> None:
    results.check(check.name, check.error, holds=check.holds)
    print(f"check {check.name}: {check.error:.2e} {'' if check.holds else 'WRONG'}", flush=True)


def _dispatch(device: torch.device) -> Callable[[list[GemmLinear]], Dispatch]:
    if device.type == "cuda":
        from inference_node.kernels.quant4 import dispatch_for

        folder = Path(tempfile.mkdtemp(prefix="lorapool-dispatch-"))
        return partial(dispatch_for, budget=rows.BUDGET, folder=folder)
    every = frozenset(ROWS)
    return lambda linears: Dispatch({linear.shape: every for linear in linears})


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"card": "none: Triton's interpreter, times mean nothing"}
    properties = torch.cuda.get_device_properties(device)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "card": properties.name,
        "memory_gb": properties.total_memory / 1e9,
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "cuda": torch.version.cuda,
    }

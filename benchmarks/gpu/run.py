"""One run: what the card is, the checks, and the rows in order of what they are worth."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import linears, rows
from benchmarks.gpu.checks import (
    Check,
    check_attention,
    check_linears,
    check_lora,
    check_pointwise,
    check_steps,
)
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.fidelity import fidelity
from benchmarks.gpu.node import Node
from benchmarks.gpu.peft_peer import beside_peft
from benchmarks.gpu.results import Figure, Results
from benchmarks.gpu.sizes import SIZES, Size
from benchmarks.gpu.steady import steady
from benchmarks.gpu.swaps import swaps
from inference_node.kernels.backend import Backend, choose
from inference_node.kernels.quant4 import Dispatch, GemmLinear
from inference_node.kernels.quant4.dispatch import ROWS

LOST = 75
"""Exit status when an error left the device unusable for this process: another can go on."""
WRONG = 3
"""Exit status when a kernel is not its reference: what needs it is not timed."""
STEP = ("attention", "linears", "captured")
"""What a decode step of the base takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One function of figures."""

    measure: Callable[[], Iterable[Figure]]
    takes: tuple[str, ...]
    """Families of kernels that must be their references."""
    needs: float
    """Seconds that must be left when it starts."""


def run(options: argparse.Namespace, *, about: dict[str, Any]) -> int:
    """Check, measure, write. Returns the exit status."""
    device = torch.device(options.device)
    size = SIZES["tiny" if options.tiny else options.size]
    results = Results(options.out, about | _card(device), seconds=options.seconds)
    if options.go_on:
        results.go_on()
    clock = Clock(device, repeats=1 if options.tiny else 20)
    bandwidth = clock.copy_bandwidth()
    results.note("copy_gb_s", bandwidth / 1e9)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s (read and written)", flush=True)
    if not clock.cuda:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        backend = choose("fused", device=device, folder=Path(folder))
    results.note("kernels", backend.name)
    node = Node(size, backend, device, rows=max(size.rows), bandwidth=bandwidth)
    for family, checks in _checks(size, backend, node).items():
        if family in results.families:
            continue
        if not results.check(family, checks) and _lost(clock):
            return LOST
    if not results.wrong(("pointwise", *STEP)):
        node.choose()
        results.note("layers", "short" if node.short else "transformers' own")
    table = _rows(node, clock)
    for name in options.rows.split(",") if options.rows else table:
        if name not in results.rows and not _measure(results, name, table[name], node, clock):
            return LOST
    wrong = results.wrong(results.families)
    return 0 if results.complete else WRONG if wrong else 1


def _checks(size: Size, backend: Backend, node: Node) -> dict[str, Iterable[Check]]:
    return {
        "LoRA": check_lora(size, backend, node.device),
        "attention": check_attention(size, backend, node.device),
        "pointwise": check_pointwise(size, backend, node.device),
        "linears": check_linears(node),
        "captured": check_steps(node, min(8, max(size.rows))),
    }


def _rows(node: Node, clock: Clock) -> dict[str, Row]:
    dispatch = _dispatch(node.device)
    with_adapters = ("LoRA", *STEP)
    return {
        "steps": Row(partial(rows.steps, node, clock), with_adapters, 30),
        "lora": Row(partial(rows.lora_alone, node, clock), ("LoRA",), 20),
        "graphs": Row(partial(rows.graph_over_eager, node, clock), STEP, 15),
        "steady": Row(partial(steady, node, clock), with_adapters, 25),
        "linears": Row(partial(linears.linears_alone, node, clock, dispatch), ("linears",), 40),
        "layers": Row(partial(rows.layers, node, clock), ("pointwise", *STEP), 20),
        "promotion": Row(partial(rows.promotion, node, clock), with_adapters, 15),
        "fidelity": Row(partial(fidelity, node, clock), ("LoRA", "attention", "pointwise"), 10),
        "own linears": Row(partial(linears.own_linears, node, clock, dispatch), with_adapters, 40),
        "capacity": Row(partial(rows.capacity, node, clock), with_adapters, 30),
        "swaps": Row(partial(swaps, node, clock), with_adapters, 70),
        "peft": Row(partial(beside_peft, node, clock), with_adapters, 90),
    }


def _measure(results: Results, name: str, row: Row, node: Node, clock: Clock) -> bool:
    """One row; False when it took the device with it."""
    if wrong := results.wrong(row.takes):
        results.skip(name, f"wrong: {', '.join(wrong)}")
        return True
    needs = row.needs if clock.cuda else 0
    if not results.row(name, row.measure, needs=needs) and _lost(clock):
        return False
    node.forget()
    if clock.cuda:
        torch.cuda.empty_cache()
    return True


def _lost(clock: Clock) -> bool:
    """Whether the device answers no more, as after an access to memory that is not there."""
    try:
        clock.wait()
        torch.zeros(1, device=clock.device).sum().item()
    except RuntimeError:
        return True
    return False


def _dispatch(device: torch.device) -> Callable[[list[GemmLinear]], Dispatch]:
    if device.type == "cuda":
        from inference_node.kernels.quant4 import dispatch_for

        folder = Path(tempfile.mkdtemp(prefix="lorapool-dispatch-"))
        return partial(dispatch_for, budget=linears.BUDGET, folder=folder)
    every = frozenset(ROWS)
    return lambda some: Dispatch({linear.shape: every for linear in some})


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

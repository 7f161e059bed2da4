"""Throughput of every system at every load it is compared at, taking turns.

A repetition goes once through all of them, every second one in reverse, with prompts that nobody
has seen: what drifts on the machine drifts for all.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cpu.figures import RATIOS, Ratio, figure, rounded
from benchmarks.cpu.floors import Floor
from benchmarks.cpu.systems import LOADS, Load, Shape, Systems, tokens_a_second
from benchmarks.cpu.wire import Worker, WorkerFailed

CONCURRENCY = tuple(f"{kind}{n}" for kind in ("distinct", "base") for n in (1, 4, 16, 64))
CURVE = (
    *(("ours", load) for load in ("over1", "over4")),
    *(("vllm", load) for load in ("over1", "over4", "over32")),
    *(("peft_mixed", load) for load in ("over1", "over4")),
)
"""Measured once, for the plot."""


@dataclass(slots=True)
class Series:
    """Tokens a second by (system, load), one value a repetition; our TTFTs by load."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    ttft: dict[str, list[float]] = field(default_factory=dict)

    def median(self, system: str, load: str) -> float | None:
        found = self.rates.get((system, load))
        return statistics.median(found) if found else None


class Alternating:
    """All systems that run, over one set of adapters."""

    def __init__(self, systems: Systems, ours: Worker, shape: Shape, *, peft_requests: int) -> None:
        self._systems, self._ours, self._shape = systems, ours, shape
        self._peft_requests = peft_requests
        self.series = Series()

    def run(self, wanted: Sequence[tuple[str, str]], *, repetitions: int, curve: bool) -> Series:
        """`wanted` are (system, load). A system that is not there, or fails, is left out."""
        for system, load in wanted:
            self._measure(system, load, seed=1, warm=True)
        for repetition in range(repetitions):
            print(f"  repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
            for system, load in wanted[:: -1 if repetition % 2 else 1]:
                self._measure(system, load, seed=2 + repetition)
        for system, load in CURVE if curve else ():
            self._measure(system, load, seed=99)
        return self.series

    def _measure(self, system: str, name: str, *, seed: int, warm: bool = False) -> None:
        if system != "ours" and _process(system) not in self._systems.running:
            return
        load = LOADS[name]
        shape = Shape(self._shape.prompt, 4) if warm else self._shape
        requests = self._peft_requests if system == "peft_sequential" else load.requests
        prompts = shape.prompts(requests, seed=1000 * seed + load.requests)
        try:
            answer = self._ask(system, load, prompts, shape.new)
            rate = tokens_a_second(answer, requests=requests, new=shape.new)
        except (WorkerFailed, OSError) as error:
            if system == "ours":
                raise
            self._give_up(_process(system), f"{name} failed: {error}")
            return
        if warm:
            return
        self.series.rates.setdefault((system, name), []).append(rate)
        if system == "ours":
            ttft = statistics.median(answer["ttft"])
            self.series.ttft.setdefault(name, []).append(ttft)

    def _ask(self, system: str, load: Load, prompts: list[list[int]], new: int) -> dict[str, Any]:
        names = load.names()[: len(prompts)]
        folders = [self._systems.folder(name) for name in names]
        found: dict[str, Any]
        if system == "ours":
            found = self._ours.ask("generate", prompts=prompts, adapters=names, new=new)
        elif system == "llamacpp":
            found = self._systems.running[system].generate(prompts, new)
        else:
            op = system.removeprefix("peft_") if system.startswith("peft_") else "generate"
            process = self._systems.running[_process(system)]
            found = process.ask(op, prompts=prompts, adapters=folders, new=new)
        return found

    def _give_up(self, process: str, reason: str) -> None:
        """What it measured so far counts no more: its rows are skipped."""
        del self._systems.running[process]
        for system, load in list(self.series.rates):
            if _process(system) == process:
                del self.series.rates[system, load]
        self._systems.skipped[process] = reason


def _process(system: str) -> str:
    """PEFT is one process with two ways to ask it."""
    return "peft" if system.startswith("peft_") else system


def needed(keys: Sequence[str]) -> list[tuple[str, str]]:
    """(system, load) pairs that figures need, both sides of a ratio next to each other."""
    pairs: list[tuple[str, str]] = []
    for key in keys:
        ratio = RATIOS[key]
        pairs += [("ours", ratio.load), (ratio.system, ratio.other)]
    return list(dict.fromkeys(pairs))


def ratio_figure(key: str, series: Series, shape: Shape, floor: Floor) -> dict[str, Any] | None:
    """A ratio of rates taken in the same repetition, with what our floor would make of it."""
    ratio: Ratio = RATIOS[key]
    mine = series.rates.get(("ours", ratio.load))
    other = series.rates.get((ratio.system, ratio.other))
    if not mine or not other:
        return None
    values = [a / b for a, b in zip(mine, other, strict=True)]
    best = floor_rate(LOADS[ratio.load], shape, floor)
    theirs = floor_rate(LOADS[ratio.other], shape, floor)
    at_floor = best / (theirs if ratio.system == "ours" else statistics.median(other))
    return figure(
        key,
        values,
        ours_tokens_s=[rounded(value) for value in mine],
        other_tokens_s=[rounded(value) for value in other],
        other=f"{ratio.system} {ratio.other}",
        at_floor=rounded(at_floor),
        share_of_floor=rounded(statistics.median(mine) / best),
    )


def floor_rate(load: Load, shape: Shape, floor: Floor) -> float:
    """Tokens a second at the floor."""
    seconds = floor.load_s(load.requests, pages=load.pages, prompt=shape.prompt, new=shape.new)
    return load.requests * shape.new / seconds


def concurrency(series: Series, shape: Shape, floor: Floor) -> list[dict[str, Any]]:
    """Tokens a second and TTFT at 1, 4, 16 and 64 at once, with and without adapters."""
    table = []
    for name in CONCURRENCY:
        rate = series.median("ours", name)
        if rate is None:
            continue
        best = floor_rate(LOADS[name], shape, floor)
        table.append(
            {
                "requests": LOADS[name].requests,
                "adapters": LOADS[name].adapters,
                "tokens_s": rounded(rate),
                "ttft_ms": rounded(1e3 * statistics.median(series.ttft[name])),
                "floor_tokens_s": rounded(best),
                "share_of_floor": rounded(rate / best),
            }
        )
    return table


def curve(series: Series) -> dict[str, list[list[float]]]:
    """[distinct adapters, tokens a second] of every system at 16 requests at a time."""
    points = {"over1": 1, "over4": 4, "distinct16": 16, "over32": 32}
    found: dict[str, list[list[float]]] = {}
    for load, adapters in points.items():
        for system in ("ours", "vllm", "peft_mixed", "peft_sequential"):
            rate = series.median(system, load)
            if rate is not None:
                found.setdefault(system, []).append([adapters, rounded(rate)])
    return found

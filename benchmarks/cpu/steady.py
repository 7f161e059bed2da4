"""Figures of steady decoding: the parts of a step, swaps below it, and the price of a switch."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from benchmarks.cpu.figures import figure, percentile, rounded
from benchmarks.cpu.floors import Floor
from benchmarks.cpu.systems import LOADS, Shape
from benchmarks.cpu.wire import Worker

SWAP_NEW, SWAP_EVERY_S = 384, 1.0
"""Of so many steps the 99th percentile is the fourth largest."""
SWITCHES = 100


def step(
    ours: Worker, shape: Shape, floor: Floor, *, repetitions: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """host_overhead_share, and the breakdown in milliseconds with and without adapters."""
    taken: dict[str, list[dict[str, float]]] = {"distinct16": [], "base16": []}
    for repetition in range(repetitions):
        for name, series in taken.items():
            prompts = shape.prompts(16, seed=300 + repetition)
            found = ours.ask("parts", prompts=prompts, adapters=LOADS[name].names(), new=shape.new)
            series.append(_with_rest(found))
    entry = figure(
        "host_overhead_share",
        [one["rest"] / one["step"] for one in taken["distinct16"]],
        base16=rounded(statistics.median(one["rest"] / one["step"] for one in taken["base16"])),
        at_floor=0.0,
    )
    table: dict[str, Any] = {
        name: {part: rounded(statistics.median(one[part] for one in series)) for part in series[0]}
        for name, series in taken.items()
    }
    for name, row in table.items():
        row["floor"] = rounded(1e3 * _floor_s(floor, shape, LOADS[name].pages))
        row["share_of_floor"] = rounded(row["floor"] / row["step"])
    table["unit"] = "milliseconds of a decode step at 16 rows, medians"
    return entry, table


def _with_rest(found: dict[str, float]) -> dict[str, float]:
    parts = ("base_linears", "attention", "lora", "lm_head")
    return {**found, "rest": found["step"] - sum(found[part] for part in parts)}


def _floor_s(floor: Floor, shape: Shape, pages: int) -> float:
    context = shape.prompt + shape.new / 2
    return floor.step_s(16, pages=pages, row_pages=pages / 16, context=context, samples=16)


def swap(ours: Worker, shape: Shape, floor: Floor, *, repetitions: int) -> dict[str, Any]:
    """p99 of the time to a token, an adapter in use swapped each second / none."""
    tokens: dict[bool, list[list[float]]] = {True: [], False: []}
    published = 0
    for repetition in range(repetitions):
        print(f"  repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
        for busy in (True, False)[:: -1 if repetition % 2 else 1]:
            answer = ours.ask(
                "swap",
                prompts=shape.prompts(16, seed=400 + repetition),
                adapters=LOADS["distinct16"].names(),
                new=SWAP_NEW,
                every_s=SWAP_EVERY_S if busy else 0.0,
                seed=10_000 + 100 * repetition,
            )
            tokens[busy].append(answer["gaps"])
            published += answer["published"]
    p99 = {busy: [percentile(gaps, 0.99) for gaps in runs] for busy, runs in tokens.items()}
    pooled = {busy: [gap for gaps in runs for gap in gaps] for busy, runs in tokens.items()}
    quiet = statistics.median(pooled[False])
    return figure(
        "swap_itl_p99",
        [much / little for much, little in zip(p99[True], p99[False], strict=True)],
        ours_p99_ms=[rounded(1e3 * value) for value in p99[True]],
        other_p99_ms=[rounded(1e3 * value) for value in p99[False]],
        other="ours, nothing published",
        pooled=rounded(percentile(pooled[True], 0.99) / percentile(pooled[False], 0.99)),
        median_ratio=rounded(statistics.median(pooled[True]) / quiet),
        steps=len(pooled[True]),
        published=published,
        new_tokens=SWAP_NEW,
        at_floor=rounded(1 + 2 * floor.page_s() / quiet),
    )


def switch(ours: Worker, shape: Shape, *, repetitions: int, peft: Worker | None) -> dict[str, Any]:
    """Each adapter serves two one-token requests in a row: the first's time less the second's."""
    differences, request = [], []
    for repetition in range(repetitions):
        names = [f"a{index // 2 % 16}" for index in range(2 * SWITCHES)]
        prompts = [prompt[:4] for prompt in shape.prompts(len(names), seed=500 + repetition)]
        seconds = ours.ask("latencies", prompts=prompts, adapters=names)["seconds"]
        pairs = zip(seconds[::2], seconds[1::2], strict=True)
        differences.append(1e6 * statistics.median(first - second for first, second in pairs))
        request.append(1e6 * statistics.median(seconds))
    about = {}
    if peft is not None:
        switches = peft.ask("switch")["seconds"]
        about["peft_us"] = rounded(1e6 * statistics.median(switches))
    return figure(
        "switch_us",
        differences,
        request_us=rounded(statistics.median(request)),
        switches=SWITCHES,
        at_floor=0.0,
        **about,
    )

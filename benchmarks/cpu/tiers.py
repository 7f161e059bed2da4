"""Many more adapters than the pool holds: the flatness, and the cliff that others fall off."""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.cpu.figures import figure, rounded
from benchmarks.cpu.floors import Floor
from benchmarks.cpu.systems import AT_ONCE, Shape, Systems, tokens_a_second
from benchmarks.cpu.wire import Worker

FLAT_POOL, FLAT_REQUESTS = 128, 64
CLIFF_POOL, CLIFF_REQUESTS = 16, 64


def flat(
    systems: Systems, shape: Shape, floor: Floor, *, adapters: int, repetitions: int
) -> tuple[dict[str, Any], list[list[float]]]:
    """Zipf(1.0) over `adapters`, all in the host tier, a pool of 128 / 16 adapters resident.

    Also [adapters, tokens a second] between the two, for the plot.
    """
    ours = systems.ours("flat", pool_adapters=FLAT_POOL, host_adapters=adapters + 8)
    names = _publish(ours, adapters)
    rates: dict[int, list[float]] = {16: [], adapters: []}
    for repetition in range(repetitions):
        print(f"  repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
        between = [n for n in (64, 256) if n < adapters and repetition == 0]
        counts = [16, *between, adapters]
        for count in counts[:: -1 if repetition % 2 else 1]:
            drawn = random.Random(repetition)
            chosen = _few(names) if count == 16 else _zipf(names[:count], drawn)
            if count == 16:
                _touch(ours, names[:16])
            rate = _rate(ours, shape, chosen, seed=1000 * count + repetition)
            rates.setdefault(count, []).append(rate)
    ours.close()
    request_s = shape.new / statistics.median(rates[16])
    entry = figure(
        "flat_1000_over_16",
        [many / few for many, few in zip(rates[adapters], rates[16], strict=True)],
        ours_tokens_s=[rounded(rate) for rate in rates[adapters]],
        other_tokens_s=[rounded(rate) for rate in rates[16]],
        other="ours, 16 adapters resident",
        adapters=adapters,
        pool=FLAT_POOL,
        requests=FLAT_REQUESTS,
        at_once=AT_ONCE,
        at_floor=rounded(request_s / (request_s + floor.page_s())),
    )
    return entry, [[n, rounded(statistics.median(rate))] for n, rate in sorted(rates.items())]


def cliff(systems: Systems, shape: Shape, floor: Floor, *, repetitions: int) -> dict[str, Any]:
    """Median TTFT, all 32 hot adapters in turn in a pool of 16 / 16 in turn in the same pool."""
    ours = systems.ours("cliff", pool_adapters=CLIFF_POOL, host_adapters=3 * CLIFF_POOL)
    names = _publish(ours, 2 * CLIFF_POOL)
    over: list[float] = []
    fit: list[float] = []
    for repetition in range(repetitions):
        print(f"  repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
        for hot in (names, names[:CLIFF_POOL])[:: -1 if repetition % 2 else 1]:
            _touch(ours, names[:CLIFF_POOL])
            order = _rounds(hot, random.Random(repetition))
            answer = _traffic(ours, shape, order, seed=1000 * len(hot) + repetition)
            (over if hot is names else fit).append(statistics.median(answer["ttft"]))
    ours.close()
    quiet = statistics.median(fit)
    return figure(
        "cliff_ttft",
        [much / little for much, little in zip(over, fit, strict=True)],
        ours_ttft_ms=[rounded(1e3 * value) for value in over],
        other_ttft_ms=[rounded(1e3 * value) for value in fit],
        other="ours, all hot adapters resident",
        hot=2 * CLIFF_POOL,
        pool=CLIFF_POOL,
        requests=CLIFF_REQUESTS,
        at_once=AT_ONCE,
        at_floor=rounded(1 + floor.page_s() / quiet),
    )


def _publish(ours: Worker, count: int) -> list[str]:
    """Published, and loaded once each, so that all are in the host tier."""
    names = [f"a{index}" for index in range(count)]
    ours.ask("publish", names=names, ranks=[8], seed=0, folder="")
    _touch(ours, names)
    return names


def _touch(ours: Worker, names: Sequence[str]) -> None:
    """One short request for each."""
    prompts = [[100 + index % 1000, 7] for index in range(len(names))]
    ours.ask("traffic", prompts=prompts, adapters=list(names), new=1, in_flight=AT_ONCE)


def _traffic(ours: Worker, shape: Shape, adapters: Sequence[str], *, seed: int) -> dict[str, Any]:
    prompts = shape.prompts(len(adapters), seed=seed)
    answer: dict[str, Any] = ours.ask(
        "traffic", prompts=prompts, adapters=list(adapters), new=shape.new, in_flight=AT_ONCE
    )
    return answer


def _rate(ours: Worker, shape: Shape, adapters: Sequence[str], *, seed: int) -> float:
    answer = _traffic(ours, shape, adapters, seed=seed)
    return tokens_a_second(answer, requests=len(adapters), new=shape.new)


def _zipf(names: Sequence[str], drawn: random.Random) -> list[str]:
    weights = [1 / place for place in range(1, len(names) + 1)]
    return drawn.choices(names, weights, k=FLAT_REQUESTS)


def _few(names: Sequence[str]) -> list[str]:
    return [names[index % 16] for index in range(FLAT_REQUESTS)]


def _rounds(hot: Sequence[str], drawn: random.Random) -> list[str]:
    """Every hot adapter once a round, each round in another order."""
    order: list[str] = []
    while len(order) < CLIFF_REQUESTS:
        order += drawn.sample(list(hot), len(hot))
    return order[:CLIFF_REQUESTS]

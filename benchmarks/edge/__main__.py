"""What do checks, credentials, quotas and the engine's thread cost beside a bare gRPC server?

`python -m benchmarks.edge` runs every side in a process of its own on one core, from one caller on
another, taking turns and stopped between their turns, and writes `results/edge-bench.json`. A ratio
is the median over the repetitions of ours over theirs in the same one. Sides are in server.py:
`bare` sends the very headers and messages that the node does. The engine is instant.py's, so a rate
is the edge's alone. Exits with 1 when a ratio falls short of its target.

unary   calls a second, of one token each, 64 at a time on 4 connections
stream  messages a second, streams of 128 tokens, 64 at a time; the node joins tokens that wait, so
        tokens a second are told too: of bare, one for each message
open    1,000 streams at once: all have their first token before any ends
h2load  the calls of `unary` by a caller that nobody here wrote (Debian: nghttp2-client); only where
        it is on PATH
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cpu.figures import percentile, rounded
from benchmarks.cpu.wire import Worker
from benchmarks.edge import h2load
from benchmarks.edge.load import Served, Target, opened, streamed, unary
from benchmarks.machine import machine

RESULT = Path(__file__).parents[1] / "results" / "edge-bench.json"
PACKAGES = ("lorapool", "grpcio", "protobuf", "PyJWT", "cryptography")
SIDES = ("headless", "bare", "open", "guarded")
REACH = 0.6
AT_ONCE, TOKENS, STREAMS = 64, 128, 1000
RATIOS = {
    "unary_over_bare": ("unary", "open", "bare"),
    "stream_over_bare": ("stream", "open", "bare"),
    "guarded_unary_over_bare": ("unary", "guarded", "bare"),
    "guarded_stream_over_bare": ("stream", "guarded", "bare"),
    "unary_over_headless": ("unary", "open", "headless"),
    "stream_over_headless": ("stream", "open", "headless"),
    "h2load_over_bare": ("h2load", "open", "bare"),
}
TARGETS = ("unary_over_bare", "stream_over_bare")
Series = dict[tuple[str, str], list[Served]]
"""By what was measured and whose it is, one for each repetition."""


class Side:
    """A server and its process."""

    def __init__(self, name: str, folder: Path) -> None:
        argv = [sys.executable, "-m", "benchmarks.edge.server", name]
        self.worker = Worker(argv, log=folder / f"{name}.log")
        self.target = Target(self.worker.facts["port"], self.worker.facts["token"])

    def measure(self, what: str, seconds: float) -> Served:
        """Its turn."""
        self.worker.process.wake()
        try:
            if what == "h2load":
                return h2load.unary(self.target, at_once=AT_ONCE, seconds=max(1, round(seconds)))
            if what == "stream":
                running = streamed(self.target, at_once=AT_ONCE, tokens=TOKENS, seconds=seconds)
            else:
                running = unary(self.target, at_once=AT_ONCE, seconds=seconds)
            return asyncio.run(running)
        finally:
            self.worker.process.pause()

    def open_many(self) -> dict[str, Any]:
        """All streams at once, then all of them to their end."""
        process = self.worker.process
        self.worker.ask("hold")
        before, most = process.resident_bytes, 0
        process.wake()

        def go_on() -> None:
            nonlocal most
            most = process.resident_bytes
            self.worker.ask("go_on")
            process.wake()

        seconds, ended = asyncio.run(opened(self.target, STREAMS, go_on, tokens=TOKENS))
        process.pause()
        return {
            "streams": STREAMS,
            "first_tokens_s": rounded(seconds),
            "ended_well": ended,
            "kib_a_stream": rounded((most - before) / STREAMS / 1024),
        }


def main() -> int:
    arguments = _arguments()
    about = machine()
    spare = sorted(os.sched_getaffinity(0))[1:]
    if not spare:
        print("a server and its caller need a core each", file=sys.stderr)
        return 2
    kinds = ["unary", "stream", *(["h2load"] if h2load.program() else [])]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lorapool-edge-")))
        sides = {}
        for name in SIDES:
            sides[name] = Side(name, folder)
            stack.callback(sides[name].worker.close)
        os.sched_setaffinity(0, spare)
        series = measure(sides, kinds, arguments.repetitions, arguments.seconds)
        many = {name: sides[name].open_many() for name in ("bare", "open")}
    found = report(series, kinds, many, about)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    return _tell(found, arguments.out)


def measure(
    sides: dict[str, Side], kinds: Sequence[str], repetitions: int, seconds: float
) -> Series:
    """Once through all sides, every second time in reverse."""
    series: Series = {}
    for repetition in range(repetitions):
        print(f"  repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
        turns = [(kind, name) for kind in kinds for name in sides]
        for kind, name in turns[:: -1 if repetition % 2 else 1]:
            series.setdefault((kind, name), []).append(sides[name].measure(kind, seconds))
    return series


def report(
    series: Series, kinds: Sequence[str], many: dict[str, Any], about: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the file holds; `about` is the machine."""
    versions = {**about.pop("versions"), **{name: version(name) for name in PACKAGES}}
    if (tool := h2load.program()) is not None:
        versions["h2load"] = h2load.version(tool)
    ratios = {
        key: _ratio(key, series[kind, ours], series[kind, theirs])
        for key, (kind, ours, theirs) in RATIOS.items()
        if kind in kinds
    }
    if "h2load" not in kinds:
        ratios["h2load_over_bare"] = {"skipped": "h2load is not on PATH (nghttp2-client)"}
    return {
        **ratios,
        "rates": {
            kind: {name: _rate(kind, series[kind, name]) for name in SIDES} for kind in kinds
        },
        "open_at_once": many,
        "machine": about,
        "versions": versions,
    }


def _ratio(key: str, ours: Sequence[Served], theirs: Sequence[Served]) -> dict[str, Any]:
    values = [one.rate / other.rate for one, other in zip(ours, theirs, strict=True)]
    value = statistics.median(values)
    aim = {"reach": REACH, "met": value >= REACH} if key in TARGETS else {}
    return {
        "value": rounded(value),
        **aim,
        "spread": [rounded(min(values)), rounded(max(values))],
        "repetitions": len(values),
    }


def _rate(kind: str, served: Sequence[Served]) -> dict[str, float]:
    latencies = [latency for one in served for latency in one.latencies]
    rates = {"a_second": rounded(statistics.median(one.rate for one in served))}
    if kind == "stream":
        told = [TOKENS * len(one.latencies) / one.seconds for one in served]
        rates["tokens_a_second"] = rounded(statistics.median(told))
    for share, name in ((0.5, "p50_ms"), (0.99, "p99_ms")):
        if latencies:
            rates[name] = rounded(1e3 * percentile(latencies, share))
    return rates


def _tell(found: dict[str, Any], out: Path) -> int:
    for kind, sides in found["rates"].items():
        told = ", ".join(f"{name} {rate['a_second']:,.0f}" for name, rate in sides.items())
        print(f"{kind:8} a second: {told}")
        if kind == "stream":
            told = ", ".join(
                f"{name} {rate['tokens_a_second']:,.0f}" for name, rate in sides.items()
            )
            print(f"{'':8} tokens a second: {told}")
    for key in RATIOS:
        one = found[key]
        told = f"{one['value']:.2f} {one['spread']}" if "value" in one else one["skipped"]
        print(f"{key:26} {told}")
    print(f"open at once: {found['open_at_once']['open']}")
    short = [key for key in TARGETS if not found[key]["met"]]
    short += [
        f"{name}: {many['ended_well']} of {STREAMS} streams ended well"
        for name, many in found["open_at_once"].items()
        if many["ended_well"] != STREAMS
    ]
    print(f"below {REACH}: {', '.join(short)}" if short else f"figures in {out}")
    return 1 if short else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

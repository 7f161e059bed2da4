"""Run the proof suite: `python -m tests.chaos [--scale 1.0] [--rows T4,T7] [--seed 0]`.

Each row runs in a process of its own, at most two at a time; one whose figures are times runs
alone, at the end. Exits with 1 when a promise was broken, a control was missed, or a row failed
to run. Results go to benchmarks/results/chaos.json, those of the service edge to edge.json beside
it, and those of the fleet, whose rows run only when --book or --rows names them, to fleet.json;
with --rows the other rows' earlier entries stay there, each with its date and what it ran on.
--out puts all into one file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.chaos.bench import ROOT
from tests.chaos.registry import ROWS, Entry, entry
from tests.chaos.results import books_of, kept, measured, replay, write

AT_ONCE = 2
_LAST_LINES = 30


def main() -> int:
    arguments = _arguments()
    if arguments.one:
        return _run_one(entry(arguments.one), arguments.scale, arguments.seed, arguments.out)
    chosen = [
        one
        for one in ROWS
        if (one.id in arguments.rows if arguments.rows else set(one.books) & set(arguments.book))
    ]
    results = _run_all(chosen, arguments.scale, arguments.seed)
    books = books_of(chosen, results, arguments.out)
    for out, rows in books.items():
        before = kept(out, chosen) if arguments.rows else []
        write(out, [*rows, *before])
        if before:
            print(
                f"kept in {out.name} from an earlier run: " + ", ".join(row["id"] for row in before)
            )
    failed = [row["id"] for row in results if not row["holds"]]
    written = ", ".join(map(str, books))
    print(f"{len(results) - len(failed)} of {len(results)} rows hold; figures in {written}")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of cases")
    parser.add_argument("--rows", type=_rows, default=(), help="ids, separated by commas")
    parser.add_argument(
        "--book",
        type=lambda text: text.split(","),
        default=("chaos", "edge"),
        help="without --rows: the rows of these result files",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="one file for all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _rows(text: str) -> tuple[str, ...]:
    ids = tuple(part.strip().upper() for part in text.split(",") if part.strip())
    unknown = sorted(set(ids) - {one.id for one in ROWS})
    if unknown:
        known = ", ".join(one.id for one in ROWS)
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {known}")
    return ids


def _run_one(row: Entry, scale: float, seed: int, out: Path) -> int:
    """In a process of its own: the line to stdout, the entry to `out`."""
    found = measured(row, scale, seed, say=lambda line: print(line, flush=True))
    out.write_text(json.dumps(found))
    return 0


def _run_all(chosen: Sequence[Entry], scale: float, seed: int) -> list[dict[str, Any]]:
    """The entries in the order of the rows; the longest is started first.

    What a row's processes log is shown only when the row fails to run.
    """
    together = sorted((one for one in chosen if not one.alone), key=lambda one: -one.minutes)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="lorapool-chaos-") as folder:
        for rows, at_once in ((together, AT_ONCE), ([one for one in chosen if one.alone], 1)):
            with ThreadPoolExecutor(at_once) as pool:
                entries = pool.map(lambda one: _in_process(one, scale, seed, Path(folder)), rows)
                found |= {row["id"]: row for row in entries}
    return [found[one.id] for one in chosen]


def _in_process(row: Entry, scale: float, seed: int, folder: Path) -> dict[str, Any]:
    out = folder / f"{row.id}.json"
    command = [sys.executable, "-m", "tests.chaos", "--one", row.id, "--out", str(out)]
    command += ["--scale", str(scale), "--seed", str(seed)]
    minutes = max(1, round(row.minutes * scale))
    print(f"{row.id:4} {row.title}: about {minutes} min", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and out.exists():
        print(done.stdout, end="", flush=True)
        value: dict[str, Any] = json.loads(out.read_text())
        return value
    print("\n".join(done.stderr.splitlines()[-_LAST_LINES:]), file=sys.stderr)
    print(f"{row.id:4} ERROR: it ended with {done.returncode}; {replay(row, scale, seed)}")
    return {"id": row.id, "holds": False, "error": f"exit code {done.returncode}", "cases": 0,
            "violations": 0, "controls": 0, "controls_caught": 0,
            "replay": replay(row, scale, seed)}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

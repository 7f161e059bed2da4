"""T14: fuzzing finds no untyped error and nothing accepted that a second opinion refuses.

`python -m tests.chaos.fuzzed SECONDS [SEED]` runs every target that long, two at a time.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.bench import Bench
from tests.chaos.fuzz.engine import Fuzzed, fuzz
from tests.chaos.fuzz.targets import TARGETS, Target
from tests.chaos.row import Row

SECONDS = 60.0
CONTROL_SECONDS = 60.0
AT_ONCE = 2


def run(scale: float, seed: int, bench: Bench) -> Row:
    """Below a second for each target, the same mutations run without coverage."""
    results = [_one(target, bench.folder, SECONDS * scale, seed) for target in TARGETS]
    return Row(
        id="T14",
        cases=len(TARGETS),
        unit="targets fuzzed",
        violations=_violations(results),
        controls={
            target.name: _finds_its_bug(target, bench.folder, CONTROL_SECONDS * scale, seed)
            for target in TARGETS
        },
        figures={f"runs_{target.name}": result.runs for target, result in results},
        seeds=str(seed),
        notes="guided by coverage" if all(r.guided for _, r in results) else "without coverage",
    )


def _one(target: Target, folder: Path, seconds: float, seed: int) -> tuple[Target, Fuzzed]:
    found = fuzz(target, folder / target.name, seconds=seconds, seed=seed, bugged=False)
    return target, found


def _finds_its_bug(target: Target, folder: Path, seconds: float, seed: int) -> bool:
    place = folder / f"{target.name}-control"
    return bool(fuzz(target, place, seconds=seconds, seed=seed, bugged=True).finding)


def _violations(results: list[tuple[Target, Fuzzed]]) -> list[str]:
    return [f"{target.name}: {found.finding}" for target, found in results if found.finding]


def main() -> int:
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with (
        tempfile.TemporaryDirectory(prefix="lorapool-fuzz-") as folder,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        results = list(pool.map(lambda one: _one(one, Path(folder), seconds, seed), TARGETS))
    for target, found in results:
        print(f"{target.name:8} {found.runs:>12,} runs  {found.finding or 'nothing found'}")
    return 1 if _violations(results) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs one target for a while, with atheris in a child or without it here."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tests.chaos.fuzz.targets import MAX_SEED, Target

ROOT = Path(__file__).resolve().parents[3]
GRACE_S = 120.0
GUIDED_FROM_S = 1.0
"""A child takes seconds to start: what is shorter than this runs here."""
BLIND_S = 0.5
_UNITS = re.compile(r"number_of_executed_units: (\d+)")


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """What one run found."""

    runs: int
    finding: str
    """Empty, or what was found and the input in hex."""
    guided: bool


def fuzz(target: Target, folder: Path, *, seconds: float, seed: int, bugged: bool) -> Fuzzed:
    """Ends at the first finding. Raises RuntimeError when the child fails in another way."""
    if seconds < GUIDED_FROM_S or importlib.util.find_spec("atheris") is None:
        return blindly(target, seconds=max(seconds, BLIND_S), seed=seed, bugged=bugged)
    return guided(target, folder, seconds=seconds, seed=seed, bugged=bugged)


def guided(target: Target, folder: Path, *, seconds: float, seed: int, bugged: bool) -> Fuzzed:
    """By coverage, in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-seed={seed + 1}",
        f"-max_len={2 * MAX_SEED}",
        f"-artifact_prefix={folder}/",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BUG": "1" if bugged else ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.fuzz.child", target.name, str(folder), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + GRACE_S,
        check=False,
    )
    units = _UNITS.search(done.stderr)
    found = folder / "finding"
    if found.exists():
        return Fuzzed(int(units[1]) if units else 1, found.read_text(), guided=True)
    if done.returncode != 0 or units is None:
        raise RuntimeError(f"{target.name}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return Fuzzed(int(units[1]), "", guided=True)


def blindly(target: Target, *, seconds: float, seed: int, bugged: bool) -> Fuzzed:
    """The same mutations without coverage, each seed first as it is."""
    rng = random.Random(seed)
    pool = list(target.good if bugged else (*target.good, *target.bad))
    waiting, runs, end = list(pool), 0, time.monotonic() + seconds
    with ExitStack() as patches:
        for place, instead in (target.bug if bugged else {}).items():
            patches.enter_context(mock.patch(place, instead))
        while waiting or time.monotonic() < end:
            data = waiting.pop() if waiting else target.bend(rng.choice(pool), rng)
            runs += 1
            try:
                if target.examine(data) and len(pool) < 5000:
                    pool.append(data)
            except Exception as error:
                text = f"{type(error).__name__}: {error}\n{data.hex()}\n"
                return Fuzzed(runs, text, guided=False)
    return Fuzzed(runs, "", guided=False)

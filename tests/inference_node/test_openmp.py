"""Threads of a step do not keep the cores that they wait for (decision 0006)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from inference_node.openmp import SPINS, wait_briefly

EARLY = "from inference_node.openmp import wait_briefly; wait_briefly(os.environ); import torch"
LATE = "import torch; from inference_node.openmp import wait_briefly; wait_briefly(os.environ)"
ASKED_FOR = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}

needs_gnu = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP: Linux")


def spins(program: str, **variables: str) -> str:
    """What OpenMP says that it took, when it was loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in ASKED_FOR}
    ran = subprocess.run(
        [sys.executable, "-c", f"import os; {program}"],
        env={**environment, "OMP_DISPLAY_ENV": "verbose", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return next(line.split("'")[1] for line in ran.stderr.splitlines() if "GOMP_SPINCOUNT" in line)


@needs_gnu
def test_openmp_hears_how_long_to_wait() -> None:
    assert spins(EARLY) == SPINS


@needs_gnu
def test_seeded_torch_is_loaded_first() -> None:
    assert spins(LATE) == "300000"


@needs_gnu
def test_whoever_sets_it_is_heeded() -> None:
    assert spins(EARLY, GOMP_SPINCOUNT="7") == "7"


def test_a_policy_that_was_set_says_it_all() -> None:
    environment = {"OMP_WAIT_POLICY": "passive"}
    wait_briefly(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive"}

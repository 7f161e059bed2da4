"""How the threads of a step wait for each other (decision 0006)."""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = "1000"
"""About ten microseconds. GNU OpenMP itself takes 300,000, three milliseconds."""


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Threads at a barrier spin for SPINS and then sleep, unless `environment` says otherwise.

    A thread that spins keeps its core from the one it waits for, when other programs want the
    cores too. OpenMP reads the variable once, when it is loaded: call this before torch is
    imported.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)

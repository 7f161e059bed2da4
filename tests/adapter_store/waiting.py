"""Waiting for a condition instead of for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Return once `condition()` is true; fail the test when it stays false."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        time.sleep(0.01)

"""Loading leaves the cores to decoding."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from inference_node.adapters.workers import background


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own there")
def test_workers_step_back_and_nobody_else_does() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with background(1, "test") as workers:
        own = workers.submit(
            lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        ).result()
    assert own > before
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before

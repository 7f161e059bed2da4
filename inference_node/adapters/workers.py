"""Threads that load adapters beside a running engine."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_NICER, _NICEST = 10, 19


def background(threads: int, name: str) -> ThreadPoolExecutor:
    """Workers that leave the cores to whoever decodes: a token waits less while adapters load."""
    return ThreadPoolExecutor(threads, name, initializer=_step_back)


def _step_back() -> None:
    # Linux takes a thread's own id here; elsewhere it would be the process that steps back.
    if sys.platform == "linux":
        own = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, own) + _NICER
        os.setpriority(os.PRIO_PROCESS, own, min(nice, _NICEST))

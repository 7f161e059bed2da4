"""Threads that lose their turn in the middle of a line, so that what may happen between two of them
does."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Collection, Iterator
from random import Random
from types import FrameType
from typing import Any

SHARE = 0.1
"""Of the instructions, before which the turn is given away."""


@contextlib.contextmanager
def shaken(files: Collection[str], seed: int) -> Iterator[None]:
    """This thread, and those begun in the body, while they are in the code of `files`."""
    random = Random(seed)

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if random.random() < SHARE:
            time.sleep(0)
        return trace

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]

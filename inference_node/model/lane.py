"""Where a device takes its work from, in the order in which it was put there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], object]
Wait = Callable[[], object]
"""Returns when the device has done what it was given up to a mark."""


class Lane(Protocol):
    """The order of work on one device."""

    def put(self, work: Work) -> None:
        """Have it done after all that was put before; may return earlier."""

    def mark(self) -> Wait:
        """A way to wait for all that was put so far, and for nothing that comes later."""


class AtOnce:
    """A processor: work is done when it is put."""

    def put(self, work: Work) -> None:
        work()

    def mark(self) -> Wait:
        return lambda: None


class CudaLane:
    """The current stream of a card, where launches and copies wait their turn by themselves."""

    def put(self, work: Work) -> None:
        work()

    def mark(self) -> Wait:
        event = torch.cuda.Event()
        event.record()
        return event.synchronize


def lane_of(device: torch.device) -> Lane:
    return CudaLane() if device.type == "cuda" else AtOnce()

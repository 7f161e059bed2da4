"""Memory in pages of 2 MiB, where the system has them, for what a step reads from end to end.

A base of 135 million parameters lies on 30,000 pages of 4 KiB, and a step reads each of them once:
more than a processor remembers the places of, so it looks them up again in every step.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch

_PAGE = 2 << 20
_CHUNK = 32 << 20
_ALIGNED = 64


class LargePages:
    """Takes tensors in. Their memory goes back when the last tensor of a chunk is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a tensor on the CPU, of its shape and type."""
        size = tensor.numel() * tensor.element_size()
        with self._lock:
            if self._used + size > len(self._chunk):
                self._chunk, self._used = _chunk(max(size, _CHUNK)), 0
            place = self._chunk[self._used : self._used + size]
            self._used += -(-size // _ALIGNED) * _ALIGNED
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _chunk(size: int) -> torch.Tensor:
    """[size] uint8 of memory that nobody has touched, from the beginning of a large page on."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    # Only memory of this process alone is given large pages.
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # A kernel without them.
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -whole.data_ptr() % _PAGE
    return whole[begin : begin + size]

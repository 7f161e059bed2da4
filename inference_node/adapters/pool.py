"""The device memory of adapters: fixed pages, allocated once, written whole.

Every page carries the stamp of the version whose bytes it holds. A step asks `routing` for the
pages of the versions it holds leases on, and a stamp that differs stops the step: a stale page
list can raise, but it cannot serve another tenant's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from inference_node.adapters.pages import PageAllocator, pages_for
from inference_node.adapters.versions import Resident
from inference_node.adapters.weights import HostAdapter
from inference_node.kernels.lora import GroupPool, ModuleMap, SlotPages


class StalePages(AssertionError):
    """A step was about to read pages that belong to another version."""


class AdapterPool:
    """Pool tensors of every group, and which version each page belongs to."""

    def __init__(
        self,
        modules: ModuleMap,
        *,
        pool_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        shares: Sequence[float] | None = None,
    ) -> None:
        """As many pages as `pool_bytes` holds, plus the null page 0 of every group.

        The groups' numbers of pages are to each other as `shares`; equal where None.
        """
        self._modules = modules
        elements = [group.shape.page_elements(modules.layers) for group in modules.groups]
        self.group_page_bytes = tuple(count * dtype.itemsize for count in elements)
        """Of one page, in each group."""
        self.page_bytes = sum(self.group_page_bytes)
        total = pages_for(pool_bytes, self.group_page_bytes, shares)
        self.allocator = PageAllocator(total)
        self.groups = tuple(
            GroupPool(
                shape=group.shape,
                a=torch.zeros(
                    (pages + 1, modules.layers, *group.shape.a_page), dtype=dtype, device=device
                ),
                b=torch.zeros(
                    (pages + 1, modules.layers, *group.shape.b_page),
                    dtype=dtype,
                    device=device,
                ),
            )
            for group, pages in zip(modules.groups, total, strict=True)
        )
        self._stamps = [[0] * (pages + 1) for pages in total]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def claim(self, staged: Resident) -> None:
        """Mark a version's pages as its own, before they are written."""
        for group, pages in enumerate(staged.pages):
            for page in pages:
                self._stamps[group][page] = staged.stamp

    def write(self, staged: Resident, host: HostAdapter) -> None:
        """Fill a version's pages. It is not resident yet, so no step reads them meanwhile.

        Returns when the device has them.
        """
        with self._copies():
            for pool, pages, group in zip(self.groups, staged.pages, host.groups, strict=True):
                if group is None:
                    continue
                for page, a, b in zip(pages, group.a, group.b, strict=True):
                    _copy(a, pool.a[page])
                    _copy(b, pool.b[page])

    @contextmanager
    def _copies(self) -> Iterator[None]:
        """Copies to the device run beside the steps, on a stream of their own.

        They begin when every step that was launched before has ended, for one of these may still
        read the pages for the version that had them; the thread waits until they are done.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield
            done = torch.cuda.Event(blocking=True)
            done.record()
        done.synchronize()

    def wipe(self, staged: Resident) -> None:
        """Fill a version's pages with zeros, before anybody else is given them.

        Raises RuntimeError where the device does not take it, or gives back something else.
        """
        for pool, pages in zip(self.groups, staged.pages, strict=True):
            for page in pages:
                for tensor in (pool.a[page], pool.b[page]):
                    _copy(torch.zeros_like(tensor), tensor)
                    if bool(tensor.view(torch.uint8).any()):
                        raise RuntimeError(f"page {page} does not keep what is written to it")

    def routing(self, held: Resident) -> SlotPages:
        """A leased version's pages for one step. Raises StalePages when they are not its own."""
        for group, pages in enumerate(held.pages):
            for page in pages:
                if self._stamps[group][page] != held.stamp:
                    raise StalePages(f"page {page} of group {group} is not {held.key}'s")
        return SlotPages(held.pages, held.scale, held.stamp)

    def read_back(self, held: Resident) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Copies of a version's pages, for tests and audits."""
        return tuple(
            (pool.a[list(pages)].clone(), pool.b[list(pages)].clone())
            for pool, pages in zip(self.groups, held.pages, strict=True)
        )


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Fill a page; on the host by numpy, because torch's worker threads are the engine thread's."""
    if target.device.type == "cpu":
        np.copyto(target.view(torch.uint8).numpy(), source.view(torch.uint8).numpy())
    else:
        target.copy_(source, non_blocking=True)

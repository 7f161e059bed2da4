"""The pool's memory beside what must be in it, page by page.

What nobody may read is NaN: pages that were never filled, and from when they are free. So whoever
reads one shows it, in the answer or in the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.versions import Resident
from inference_node.adapters.weights import HostAdapter
from tests.chaos.stateful.shelf import Shelf, Words, raw


class Memory:
    """Watches every write and every release of one pool."""

    def __init__(
        self, shelf: Shelf, pool: AdapterPool, before_write: Callable[[Resident], None]
    ) -> None:
        """`before_write` may raise: the copy fails."""
        self._shelf = shelf
        self._pool = pool
        self._before_write = before_write
        self._owner: list[dict[int, tuple[str, int]]] = [{} for _ in pool.groups]
        """By page: the digest whose bytes it holds, and which of its pages it is."""
        for group, pages in enumerate(pool.allocator.total):
            self._spoil(group, range(1, pages + 1))
        self._real = [raw(tensor) for group in pool.groups for tensor in (group.a, group.b)]
        self._due = [memory.copy() for memory in self._real]
        self._watch()

    def check(self) -> None:
        """All of it is as it must be. Raises AssertionError."""
        for place, (real, due) in enumerate(zip(self._real, self._due, strict=True)):
            if not np.array_equal(real, due):
                pages = (real != due).any(axis=1).nonzero()[0].tolist()
                factor = "AB"[place % 2]
                raise AssertionError(
                    f"N2, N6: {factor} in pages {pages} of group {place // 2} is not as published"
                )

    def check_holds(self, resident: Resident) -> None:
        """Every page of a version holds its bytes. Raises AssertionError."""
        for group, pages in enumerate(resident.pages):
            whole = len(self._shelf.by_vdig[resident.key.vdig].pages[group][0])
            assert len(pages) == whole, f"N5: {resident.key} has {len(pages)} of {whole} pages"
            for place, page in enumerate(pages):
                found = self._owner[group].get(page)
                assert found == (resident.key.vdig, place), (
                    f"N2, N5: page {page} of group {group} is to be {resident.key}: {found}"
                )

    def _watch(self) -> None:
        write, wipe = self._pool.write, self._pool.wipe
        release = self._pool.allocator.release

        def watched_write(staged: Resident, host: HostAdapter) -> None:
            self._before_write(staged)
            write(staged, host)
            self._note_filled(staged)

        def watched_wipe(staged: Resident) -> None:
            wipe(staged)
            for group, pages in enumerate(staged.pages):
                for due, _ in self._factors(group):
                    due[list(pages)] = 0

        def watched_release(pages: Sequence[Sequence[int]]) -> None:
            release(pages)
            for group, numbers in enumerate(pages):
                self._spoil(group, numbers)
                for page in numbers:
                    self._owner[group].pop(page, None)
                    for due, real in self._factors(group):
                        due[page] = real[page]

        self._pool.write = watched_write  # type: ignore[method-assign]
        self._pool.wipe = watched_wipe  # type: ignore[method-assign]
        self._pool.allocator.release = watched_release  # type: ignore[method-assign]

    def _note_filled(self, staged: Resident) -> None:
        vdig = staged.key.vdig
        for group, pages in enumerate(staged.pages):
            for place, page in enumerate(pages):
                self._owner[group][page] = (vdig, place)
                published = self._shelf.by_vdig[vdig].pages[group]
                for (due, _), factor in zip(self._factors(group), published, strict=True):
                    due[page] = factor[place]

    def _factors(self, group: int) -> list[tuple[Words, Words]]:
        """A and B of a group, each as it must be and as it is."""
        places = (2 * group, 2 * group + 1)
        return [(self._due[place], self._real[place]) for place in places]

    def _spoil(self, group: int, pages: Sequence[int]) -> None:
        self._pool.groups[group].a[list(pages)] = torch.nan
        self._pool.groups[group].b[list(pages)] = torch.nan

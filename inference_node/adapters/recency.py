"""In which order to let go of what can be had again: used once goes before used again.

Two lists, each least recently used first. A newcomer is on probation and among the first to go;
used a second time it is proved, and goes only when nobody is on probation. So a sweep over many
things that are each used once pushes out other newcomers and nothing that is in use. The proved
hold at most a share of the room: beyond it their least recent are on probation again, so what was
hot once makes way. What was let go lately is remembered by name alone, and is proved at once should
it come back; no more names are remembered than are held, so a long sweep that starts over stays on
probation.

Segmented LRU (Karedla, Love and Wherry 1994) with the ghost list of 2Q (Johnson and Shasha 1994).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PROVED_SHARE = 0.8


class Recency(Generic[K]):
    """Pure bookkeeping of names and sizes; whoever owns the things decides what may go."""

    def __init__(self, room: int) -> None:
        """`room` is what the sizes of all that is held add up to at most."""
        self._most_proved = int(room * PROVED_SHARE)
        self._probation: OrderedDict[K, int] = OrderedDict()
        self._proved: OrderedDict[K, int] = OrderedDict()
        self._ghosts: OrderedDict[K, None] = OrderedDict()
        self._proved_size = 0

    def __contains__(self, key: K) -> bool:
        return key in self._probation or key in self._proved

    def __iter__(self) -> Iterator[K]:
        """First to go first."""
        yield from self._probation
        yield from self._proved

    def __len__(self) -> int:
        return len(self._probation) + len(self._proved)

    def add(self, key: K, size: int) -> None:
        """Take a newcomer in. It is proved when it was let go only lately."""
        assert key not in self
        self._probation[key] = size
        if key in self._ghosts:
            del self._ghosts[key]
            self.used_again(key)

    def used(self, key: K) -> None:
        """Its first use: it is the most recent of its list and proves nothing."""
        held = self._proved if key in self._proved else self._probation
        held.move_to_end(key)

    def used_again(self, key: K) -> None:
        """It is proved, and the most recent."""
        size = self._probation.pop(key, None)
        if size is None:
            self._proved.move_to_end(key)
            return
        self._proved[key] = size
        self._proved_size += size
        while self._proved_size > self._most_proved:
            stale, size = self._proved.popitem(last=False)
            self._proved_size -= size
            self._probation[stale] = size

    def inherit(self, heir: K, before: K) -> None:
        """`heir` takes the place of `before` in its users' eyes."""
        if before in self._proved:
            self.used_again(heir)

    def remove(self, key: K) -> None:
        """It is let go, and remembered by name."""
        if self._probation.pop(key, None) is None:
            self._proved_size -= self._proved.pop(key)
        self._ghosts[key] = None
        self._ghosts.move_to_end(key)
        while len(self._ghosts) > len(self) + 1:
            self._ghosts.popitem(last=False)

    def check_integrity(self) -> None:
        """Raises AssertionError when the lists overlap or sizes do not add up."""
        assert not self._probation.keys() & self._proved.keys()
        assert self._proved_size == sum(self._proved.values()) <= max(0, self._most_proved)

"""References that meant nothing when the store was asked a moment ago. Pure Python.

A reference that is asked for again and again while it means nothing is remembered longer and
longer. What is remembered of one tenant never pushes out what is remembered of another that has
less: a flood of names forgets itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from adapter_store.layout import AdapterRef
from inference_node.adapters.backoff import REMEMBERED, Delays

DELAYS = Delays(first=2.0, longest=60.0)


@dataclass(slots=True)
class _Absence:
    misses: int
    until: float
    min_generation: int
    """The highest that was asked for: who knows of a higher one may know of a newer record."""


class AbsentNames:
    """For one thread."""

    def __init__(self, *, clock: Callable[[], float], capacity: int = REMEMBERED) -> None:
        self._clock = clock
        self._capacity = capacity
        self._of: dict[str, OrderedDict[AdapterRef, _Absence]] = {}
        self._refs: dict[tuple[str, str], set[AdapterRef]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def recalls(self, ref: AdapterRef, min_generation: int) -> bool:
        """Whether the store need not be asked again yet."""
        mine = self._of.get(ref.tenant)
        absence = None if mine is None else mine.get(ref)
        return (
            absence is not None
            and self._clock() < absence.until
            and min_generation <= absence.min_generation
        )

    def note(self, ref: AdapterRef, min_generation: int) -> None:
        """The store said just now that there is no such thing."""
        now = self._clock()
        before = self._drop(ref)
        # Long not asked for, it starts anew.
        recent = before is not None and now < before.until + DELAYS.longest
        misses = before.misses + 1 if before is not None and recent else 1
        until = now + DELAYS.after(misses)
        mine = self._of.setdefault(ref.tenant, OrderedDict())
        mine[ref] = _Absence(misses, until, min_generation)
        self._refs.setdefault((ref.tenant, ref.adapter), set()).add(ref)
        self._count += 1
        while self._count > self._capacity:
            most = max(self._of.values(), key=len)
            self._drop(next(iter(most)))

    def found(self, ref: AdapterRef) -> None:
        """The store said just now that there is."""
        self._drop(ref)

    def forget(self, tenant: str, adapter: str) -> None:
        """There is news of the name: nothing is known to be absent of it."""
        for ref in list(self._refs.get((tenant, adapter), ())):
            self._drop(ref)

    def forget_all(self) -> None:
        """News may have been lost."""
        self._of.clear()
        self._refs.clear()
        self._count = 0

    def check_integrity(self) -> None:
        """Raises AssertionError when the bound is broken or the two indices differ."""
        held = {ref for mine in self._of.values() for ref in mine}
        assert len(held) == self._count <= self._capacity
        assert held == {ref for refs in self._refs.values() for ref in refs}
        assert all(self._of.values()), "a tenant without names is kept"
        assert all(self._refs.values()), "a name without references is kept"

    def _drop(self, ref: AdapterRef) -> _Absence | None:
        mine = self._of.get(ref.tenant, OrderedDict())
        absence = mine.pop(ref, None)
        if absence is None:
            return None
        self._count -= 1
        if not mine:
            del self._of[ref.tenant]
        refs = self._refs[ref.tenant, ref.adapter]
        refs.discard(ref)
        if not refs:
            del self._refs[ref.tenant, ref.adapter]
        return absence

"""Checks after every step that slots, pages, blocks, leases, claims and orders add up, and that no
name goes back to an older generation.

It wraps the engine's turn, on the engine's own thread, so that no step can go unchecked and nothing
moves meanwhile. A broken sum is kept for the test to see and does not stop the engine: what a
seeded bug does next is then seen too.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

from inference_node.engine.loop import EngineLoop

_KEPT = 5


@dataclass
class _Served:
    """The highest generation that each name has served since the last withdrawal."""

    withdrawals: int = 0
    generations: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass
class StepAudit:
    """What was seen of every engine that ran meanwhile."""

    checks: int = 0
    broken: list[str] = field(default_factory=list)
    """The first few sums that did not add up."""
    _expected: bool = False
    _served: dict[int, _Served] = field(default_factory=dict)
    """By engine."""

    def check(self, engine: EngineLoop) -> None:
        """Call on the engine thread, between two turns."""
        self.checks += 1
        try:
            engine.check_integrity()
            check_leases(engine)
            self._check_names(engine)
        except AssertionError:
            if len(self.broken) < _KEPT:
                self.broken.append(traceback.format_exc(limit=-2))

    def _check_names(self, engine: EngineLoop) -> None:
        """Unless what it served is no longer trusted, or it was deleted and published again."""
        names, slots = engine._admission.names, engine._slots
        before = self._served.get(id(engine), _Served())
        now = _Served(names.withdrawals, before.generations)
        if before.withdrawals != names.withdrawals:
            now = _Served(names.withdrawals)
        self._served[id(engine)] = now
        for name in slots.served_names():
            entry = slots.serving(*name)
            assert entry is not None
            reached = now.generations.get(name, 0)
            assert entry.gen >= reached, f"{name} served {reached} before {entry.gen}"
            now.generations[name] = entry.gen

    @contextmanager
    def of_one_test(self) -> Iterator[StepAudit]:
        """Fails at the end if a step left something broken that was not expected."""
        self.broken, self._expected = [], False
        self._served.clear()
        yield self
        assert self._expected or not self.broken, "\n".join(self.broken)

    def expect_broken(self) -> bool:
        """For the control of a bug that breaks a sum: whether it did. It may until the end."""
        self._expected = True
        return bool(self.broken)


def check_leases(engine: EngineLoop) -> None:
    """Each request holds the version it was given, with as many leases as requests hold it.

    And every page that may be read carries its version's stamp: no fill wrote over another's.
    """
    held = [s for s in engine._active.values() if s.lease is not None]
    for sequence in held:
        assert sequence.entry is not None
        assert sequence.lease is not None
        assert sequence.lease.key == sequence.entry.key, "a request holds another's version"
        count = sum(other.lease is sequence.lease for other in held)
        assert sequence.lease.leases == count, "leases are dropped once"
        engine._runner._pool.routing(sequence.lease)
    for sequence in engine._scheduler.running:
        assert engine._active.get(sequence.request.request_id) is sequence, "nobody waits for it"


@contextmanager
def audited_steps() -> Iterator[StepAudit]:
    """Every engine that takes a turn meanwhile is checked after it, and once more at its end."""
    audit = StepAudit()
    turn, run = EngineLoop._turn, EngineLoop._run

    def checked_turn(engine: EngineLoop) -> bool:
        stuck = turn(engine)
        audit.check(engine)
        return stuck

    def checked_run(engine: EngineLoop) -> None:
        run(engine)
        audit.check(engine)

    with (
        mock.patch.object(EngineLoop, "_turn", checked_turn),
        mock.patch.object(EngineLoop, "_run", checked_run),
    ):
        yield audit

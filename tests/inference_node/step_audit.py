"""Checks after every step that slots, pages, blocks and leases add up.

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
class StepAudit:
    """What was seen of every engine that ran meanwhile."""

    checks: int = 0
    broken: list[str] = field(default_factory=list)
    """The first few sums that did not add up."""
    _expected: bool = False

    def check(self, engine: EngineLoop) -> None:
        """Call on the engine thread, between two turns."""
        self.checks += 1
        try:
            engine.check_integrity()
            check_leases(engine)
        except AssertionError:
            if len(self.broken) < _KEPT:
                self.broken.append(traceback.format_exc(limit=-2))

    @contextmanager
    def of_one_test(self) -> Iterator[StepAudit]:
        """Fails at the end if a step left something broken that was not expected."""
        self.broken, self._expected = [], False
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

"""Could one log, asked by one client at a time, have given these answers?

After Wing and Gong (1993) with Lowe's memory of visited configurations. A history is what several
clients did to one adapter: reads, and publishes that name the generation they expect. It is
linearizable when every operation can be given one instant between its invocation and its return,
such that in the order of those instants each does what the log's sequential meaning says:

    state                     (gen, vdig), at first (0, "")
    read -> (g, d)            allowed when the state is (g, d)
    publish(e, d) -> OK g     allowed when gen = e and g = e + 1; then the state is (g, d)
    publish(e, d) -> CONFLICT allowed when gen is not e; changes nothing
    publish(e, d) -> FAILED   does nothing, or if gen = e fills the slot: (e + 1, the same vdig)
    publish(e, d) -> UNKNOWN  as FAILED, or as OK, at any time after its invocation, or never
    DAMAGED                   what was found breaks the hash chain: nothing explains it
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Answer(Enum):
    READ = "read"
    OK = "ok"
    CONFLICT = "conflict"
    FAILED = "failed"
    UNKNOWN = "unknown"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call by one client, with the host's monotonic clock before and after it."""

    client: str
    answer: Answer
    invoked: float
    returned: float
    gen: int
    """What a read saw, what a publish was given; 0 for neither."""
    vdig: str
    """What a read saw; what a publish wanted."""
    expected: int = 0
    """The generation a publish was to follow."""

    @property
    def until(self) -> float:
        """The last instant at which it can have taken effect."""
        return math.inf if self.answer is Answer.UNKNOWN else self.returned


class LogState(NamedTuple):
    gen: int = 0
    vdig: str = ""


def is_linearizable(history: Sequence[Operation]) -> bool:
    """Whether some order of instants explains every answer."""
    order = sorted(history, key=lambda one: one.invoked)
    needed = sum(1 << at for at, one in enumerate(order) if one.answer is not Answer.UNKNOWN)
    seen: set[tuple[int, LogState]] = set()
    stack = [(0, LogState())]
    while stack:
        done, state = stack.pop()
        if done & needed == needed:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        for at in _next(order, done):
            stack += [(done | 1 << at, after) for after in _effects(order[at], state)]
    return False


def _next(order: Sequence[Operation], done: int) -> Iterator[int]:
    """Operations that may come next: invoked before any open one had to have happened."""
    left = [at for at in range(len(order)) if not done >> at & 1]
    soonest = min(order[at].until for at in left)
    for at in left:
        if order[at].invoked > soonest:
            return
        yield at


def _effects(one: Operation, state: LogState) -> tuple[LogState, ...]:
    """The states that `one` may lead to with the answer it gave; none when it cannot be next."""
    fits = one.expected == state.gen
    landed, filled = LogState(state.gen + 1, one.vdig), LogState(state.gen + 1, state.vdig)
    match one.answer:
        case Answer.READ:
            return (state,) if state == (one.gen, one.vdig) else ()
        case Answer.OK:
            return (landed,) if fits and one.gen == landed.gen else ()
        case Answer.CONFLICT:
            return () if fits else (state,)
        case Answer.FAILED:
            return (state, filled) if fits else (state,)
        case Answer.UNKNOWN:
            return (landed, filled) if fits else ()
        case Answer.DAMAGED:
            return ()

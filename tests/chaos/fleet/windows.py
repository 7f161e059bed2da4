"""When a fault could be felt, and what may be lost to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.fleet.callers import Call
from tests.chaos.fleet.front import Failure
from tests.chaos.fleet.tattoos import name
from tests.inference_node.tattoo import Verdict

KILL, DRAIN, REDIS, STORE, GATEWAY = (
    "node killed",
    "node drained",
    "Redis stopped",
    "store stopped",
    "gateway restarted",
)
KINDS = (KILL, DRAIN, REDIS, STORE, GATEWAY)
FREE = (DRAIN, REDIS)
"""These may cost no request."""
NOTHING = "nothing"
_CLOCKS_S = 0.1
"""By which Envoy's time of a request, in whole milliseconds, may be off its caller's."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a fault could be felt, on the monotonic clock."""

    kind: str
    began: float
    ended: float
    node: str = ""
    """Whom it befell."""

    def touches(self, call: Call) -> bool:
        return call.began <= self.ended and call.ended >= self.began


def met(call: Call, windows: Sequence[Window]) -> Window | None:
    """The fault that a lost request met: one that may cost some before one that may not."""
    found = [window for window in windows if window.touches(call)]
    return min(found, key=lambda window: window.kind in FREE, default=None)


def kind_met(call: Call, windows: Sequence[Window]) -> str:
    window = met(call, windows)
    return NOTHING if window is None else window.kind


def judged(call: Call, windows: Sequence[Window]) -> Iterator[str]:
    """What one request breaks."""
    if call.verdict is not None:
        if call.verdict is not Verdict.RIGHT:
            yield f"adapter {call.adapter} was answered by {call.verdict.value}"
        if call.older:
            yield call.older
        return
    kind = kind_met(call, windows)
    if not call.retryable:
        yield f"adapter {call.adapter}: {call.reason}, and no word on when to try again"
    elif kind in (*FREE, NOTHING):
        yield f"adapter {call.adapter}: {call.reason} during {kind}"


def lost_elsewhere(
    calls: Sequence[Call], windows: Sequence[Window], failures: Sequence[Failure]
) -> list[str]:
    """Requests lost to the kill of a node that did not have them, by what the gateway wrote."""
    to_wall_clock = time.time() - time.monotonic()
    found = []
    for call in calls:
        window = met(call, windows)
        if call.verdict is not None or window is None or window.kind != KILL:
            continue
        began, ended = call.began + to_wall_clock, call.ended + to_wall_clock
        if not any(
            failure.node == window.node
            and failure.adapter == name(call.adapter)
            and began - _CLOCKS_S <= failure.began <= ended + _CLOCKS_S
            for failure in failures
        ):
            found.append(f"adapter {call.adapter} was lost to a kill of {window.node}, not on it")
    return found

"""Whose time is up, without looking at everybody each step. Pure Python; for the engine thread."""

from __future__ import annotations

import heapq

from inference_node.engine.sequence import Phase, Sequence

_SLACK = 64


class Deadlines:
    """The requests that have a deadline and have not ended."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._swept_at = _SLACK

    def add(self, sequence: Sequence) -> None:
        deadline = sequence.request.deadline
        if deadline is None:
            return
        heapq.heappush(self._heap, (deadline, sequence.order, sequence))
        if len(self._heap) > self._swept_at:
            # Most requests end long before their deadline, and need not be remembered until then.
            self._heap = [item for item in self._heap if item[2].phase is not Phase.DONE]
            heapq.heapify(self._heap)
            self._swept_at = 2 * len(self._heap) + _SLACK

    def soonest(self) -> float | None:
        """The next deadline of a request that has not ended."""
        while self._heap and self._heap[0][2].phase is Phase.DONE:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def passed(self, now: float) -> list[Sequence]:
        """Requests that have not ended and should have by `now`; each is told of once."""
        late: list[Sequence] = []
        while (deadline := self.soonest()) is not None and deadline <= now:
            late.append(heapq.heappop(self._heap)[2])
        return late

"""One simulated node: rows shared by all that run, loads beside them, a queue before both.

Running requests share the measured rate of so many at once evenly, so a request's progress is one
number for all: `_served`, the tokens that a row has got since the start. What ends next is the
smallest mark on that scale, and only it is on the agenda.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.fleet_sim.measured import NodeFigures
from benchmarks.fleet_sim.tally import Tally
from benchmarks.fleet_sim.tiers import Place, Tiers

_SLACK = 1e-9


class Agenda:
    """What will happen, soonest first; what happens at one moment in the order it was noted."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self._noted = 0

    def note(self, when: float, act: Callable[[float, int], None], what: int) -> None:
        self._noted += 1
        heapq.heappush(self._heap, (when, self._noted, act, what))

    def run_until(self, now: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, _, act, what = heapq.heappop(heap)
            act(when, what)


class Load:
    """What a gateway counts: requests that it sent to each node and that are not answered."""

    def __init__(self, nodes: int) -> None:
        self.of = [0] * nodes
        self.total = 0


class Asked(NamedTuple):
    """A request in a node."""

    adapter: int
    arrived: float
    counted: bool
    new_here: bool
    """Nobody asked this node for the adapter since it was started, before this run."""


class Node:
    """Rows, loads and queue of one."""

    def __init__(
        self,
        index: int,
        figures: NodeFigures,
        tiers: Tiers,
        agenda: Agenda,
        load: Load,
        tally: Tally,
    ) -> None:
        self.index = index
        self.tiers = tiers
        self._figures, self._agenda, self._load, self._tally = figures, agenda, load, tally
        self._rates = [0.0, *(rate / n for n, rate in enumerate(figures.tokens_s) if n)]
        self._threads = [0.0] * figures.fetch_threads
        self._loading: dict[int, list[Asked]] = {}
        self._unplaced: deque[int] = deque()
        self._queue: deque[Asked] = deque()
        self._running: list[tuple[float, int, Asked]] = []
        self._served = 0.0
        self._then = 0.0
        self._started = 0
        self._epoch = 0
        self.row_seconds = 0.0
        """Rows taken, over time."""

    def offer(self, asked: Asked, now: float) -> bool:
        """Whether the request was taken."""
        if self._load.of[self.index] >= self._figures.max_queue:
            return False
        self._load.of[self.index] += 1
        self._load.total += 1
        adapter = asked.adapter
        if adapter in self.tiers.device:
            self._tally.found(asked, Place.DEVICE)
            self._admit(asked, now)
        elif adapter in self._loading:
            self._tally.joined(asked)
            self._loading[adapter].append(asked)
        else:
            self._fetch(asked, now)
        return True

    def _fetch(self, asked: Asked, now: float) -> None:
        figures, adapter = self._figures, asked.adapter
        place = self.tiers.bring(adapter)
        self._tally.found(asked, place)
        cold = asked.new_here and adapter not in self.tiers.known
        self._tally.resolved(asked, cold=cold)
        self.tiers.known.add(adapter)
        seconds = figures.copy_s + (figures.resolve_s if cold else 0.0)
        if place is not Place.HOST:
            seconds += figures.fetch_s
        begins = max(now, heapq.heappop(self._threads))
        heapq.heappush(self._threads, begins + seconds)
        self._loading[adapter] = [asked]
        self._agenda.note(begins + seconds, self._loaded, adapter)

    def _loaded(self, now: float, adapter: int) -> None:
        if not self.tiers.place(adapter):
            self._unplaced.append(adapter)
            return
        for asked in self._loading.pop(adapter):
            self._admit(asked, now)

    def _admit(self, asked: Asked, now: float) -> None:
        slot = self.tiers.lease(asked.adapter)
        if slot.stale_since is not None:
            self._tally.stale(asked, now - slot.stale_since)
        if len(self._running) < self._figures.max_rows:
            self._start(asked, now)
            self._reschedule(now)
        else:
            self._queue.append(asked)

    def _start(self, asked: Asked, now: float) -> None:
        self._advance(now)
        self._started += 1
        ends = self._served + self._figures.new_tokens
        heapq.heappush(self._running, (ends, self._started, asked))
        self._tally.started(asked, now)

    def _advance(self, now: float) -> None:
        rows = len(self._running)
        passed = now - self._then
        self._served += passed * self._rates[rows]
        self.row_seconds += passed * rows
        self._then = now

    def _reschedule(self, now: float) -> None:
        self._epoch += 1
        if self._running:
            left = max(0.0, self._running[0][0] - self._served)
            when = now + left / self._rates[len(self._running)]
            self._agenda.note(when, self._finish, self._epoch)

    def _finish(self, now: float, epoch: int) -> None:
        if epoch != self._epoch:
            return
        self._advance(now)
        running = self._running
        while running and running[0][0] <= self._served + _SLACK:
            _, _, asked = heapq.heappop(running)
            self.tiers.device[asked.adapter].leases -= 1
            self._load.of[self.index] -= 1
            self._load.total -= 1
            self._tally.answered(asked, now)
            if self._queue:
                self._start(self._queue.popleft(), now)
        while self._unplaced and self.tiers.place(self._unplaced[0]):
            for asked in self._loading.pop(self._unplaced.popleft()):
                self._admit(asked, now)
        self._reschedule(now)

    def publish(self, adapter: int, now: float, delay: float, *, counted: bool) -> None:
        """A newer version is out; a node that serves the adapter follows `delay` later."""
        self.tiers.forget_copies(adapter)
        slot = self.tiers.device.get(adapter)
        if slot is None:
            return
        if slot.stale_since is None:
            slot.stale_since = now
        if counted:
            self._tally.swap_s.append(delay)
        self._agenda.note(now + delay, self._swap, adapter)

    def _swap(self, now: float, adapter: int) -> None:
        slot = self.tiers.device.get(adapter)
        if slot is not None:
            slot.stale_since = None

"""From the engine's thread to the asyncio tasks of calls, in constant space."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from inference_node.request import Completed, Delta, Echo, Event, Failed, Started

APART = 64
"""Deltas that are kept as they are: joined, they take a fraction of the space."""


class Bell:
    """Calls back on one loop from another thread: of any number at a time it interrupts it once.

    A step of the engine has news for every running call, and waking the loop costs a system call.
    """

    def __init__(self) -> None:
        """Belongs to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []

    def ring(self, wake: Callable[[], None]) -> None:
        """Have `wake` called on the loop soon."""
        with self._lock:
            self._waiting.append(wake)
            first = len(self._waiting) == 1
        if first:
            # A closed loop has no callers left to tell.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._toll)

    def _toll(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()


class Mailbox:
    """The events of one request, deltas that nobody has read yet joined into one.

    However slowly a caller reads, at most four events wait: started, echo, one delta, the last.
    """

    def __init__(self, bell: Bell, on_last: Callable[[], None]) -> None:
        """Belongs to the loop of `bell`, on which `on_last` is called once the engine is done."""
        self._bell = bell
        self._on_last = on_last
        self._reader: asyncio.Future[None] | None = None
        self._lock = threading.Lock()
        self._waking = False
        self._started: Started | None = None
        self._echo: Echo | None = None
        self._deltas: list[Delta] = []
        self._last: Completed | Failed | None = None

    def post(self, event: Event) -> None:
        """Called on the engine's thread; never blocks. Events after the last are dropped."""
        with self._lock:
            if self._last is not None:
                return
            match event:
                case Delta():
                    self._deltas.append(event)
                    if len(self._deltas) >= APART:
                        self._deltas = [joined(self._deltas)]
                case Started():
                    self._started = event
                case Echo():
                    self._echo = event
                case Completed() | Failed():
                    self._last = event
            wake, self._waking = not self._waking, True
        if wake:
            self._bell.ring(self._wake)

    async def news(self) -> list[Event]:
        """Every event that nobody has read yet, in order; the last one again once it came.

        One task reads.
        """
        while not (events := self._take()):
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return events

    @property
    def ended(self) -> bool:
        """Whether the engine is done with the request."""
        with self._lock:
            return self._last is not None

    def _take(self) -> list[Event]:
        with self._lock:
            events: list[Event] = [
                event for event in (self._started, self._echo) if event is not None
            ]
            self._started = self._echo = None
            if self._deltas:
                events.append(joined(self._deltas))
                self._deltas = []
            if self._last is not None:
                events.append(self._last)
            return events

    def _wake(self) -> None:
        with self._lock:
            self._waking = False
            ended = self._last is not None
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if ended:
            self._on_last()


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several, one after the other, as one."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        tuple(score for delta in deltas for score in delta.scores),
    )

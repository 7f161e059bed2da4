"""From the engine's thread to the asyncio tasks of calls, in constant space and without a lock.

Each side does one thing at a time to what both hold: a deque that one end is put on and the other
is taken from, and flags. So no lock is needed, but an order is:

    post       (1) put the event     (2) look whether the reader sleeps, and ring
    arrival    (a) go to sleep       (b) look for events once more

Whatever (b) misses was put after (a), so that (2) sees the sleeper. A mailbox rings once until the
loop has heard it, and forgets that before it wakes the reader; the bell, before it asks who rang.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from inference_node.request import Completed, Delta, Event, Failed

APART = 64
"""Events that are kept as they are: joined, deltas take a fraction of the space."""


class Bell:
    """Calls back on one loop from other threads: of any number at a time it interrupts it once.

    A step of the engine has news for every running call, and waking the loop costs a system call.
    """

    def __init__(self) -> None:
        """Belongs to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._pulled = False

    def ring(self, wake: Callable[[], None]) -> None:
        """Have `wake` called on the loop soon."""
        self._waiting.append(wake)
        if not self._pulled:
            self._pulled = True
            # A closed loop has no callers left to tell.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._toll)

    def _toll(self) -> None:
        self._pulled = False
        while self._waiting:
            self._waiting.popleft()()


class Mailbox:
    """The events of one request, deltas that nobody has read yet joined into one.

    However slowly a caller reads, the space of at most APART events is held.
    """

    def __init__(self, bell: Bell, on_last: Callable[[], None]) -> None:
        """Read on the loop of `bell`. `on_last` is called where the last event is posted, first."""
        self._bell = bell
        self._on_last = on_last
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._rung = False
        self._taken_last: Event | None = None
        self.ended = False
        """Whether the engine is done with the request."""

    def post(self, event: Event) -> None:
        """Called by one thread at a time; never blocks. Events after the last are dropped."""
        if self.ended:
            return
        if isinstance(event, Delta):
            if len(self._events) >= APART:
                self._join()
        elif isinstance(event, Completed | Failed):
            self.ended = True
            self._on_last()
        self._events.append(event)
        if self._reader is not None and not self._rung:
            self._rung = True
            self._bell.ring(self._wake)

    def take(self) -> Event | None:
        """The next event, of deltas all that wait; the last one again once it came.

        One task takes.
        """
        try:
            event = self._events.popleft()
        except IndexError:
            return self._taken_last
        if isinstance(event, Delta):
            return self._with_the_rest(event) if self._events else event
        if isinstance(event, Completed | Failed):
            self._taken_last = event
        return event

    async def arrival(self) -> None:
        """Wait until there may be something to take."""
        self._reader = asyncio.get_running_loop().create_future()
        try:
            if not self._events:
                await self._reader
        finally:
            self._reader = None

    def _with_the_rest(self, first: Delta) -> Delta:
        """The deltas that follow `first`, taken too."""
        said = [first]
        try:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, Delta):
                    said.append(event)
                else:
                    # None but the last follows a delta, and it is taken again and again.
                    self._taken_last = event
        except IndexError:
            # The others are being joined this moment.
            return joined(said)
        return joined(said)

    def _join(self) -> None:
        """What waits of deltas becomes one, from the end that the reader does not take from."""
        said: list[Delta] = []
        with contextlib.suppress(IndexError):
            while isinstance(self._events[-1], Delta):
                event = self._events.pop()
                assert isinstance(event, Delta)
                said.append(event)
        if said:
            self._events.append(joined(said[::-1]))

    def _wake(self) -> None:
        self._rung = False
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several, one after the other, as one."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        "".join([delta.text for delta in deltas]),
        tuple([token for delta in deltas for token in delta.token_ids]),
        tuple([score for delta in deltas for score in delta.scores]),
    )

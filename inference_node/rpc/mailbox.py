"""From the engine's thread to the asyncio task of one call, in constant space."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

from inference_node.request import Completed, Delta, Echo, Event, Failed, Started, TokenScore


class Mailbox:
    """The events of one request, deltas that nobody has read yet joined into one.

    However slowly a caller reads, at most four events wait: started, echo, one delta, the last.
    """

    def __init__(self, on_last: Callable[[], None]) -> None:
        """Belongs to the running loop, on which `on_last` is called once the engine is done."""
        self._loop = asyncio.get_running_loop()
        self._on_last = on_last
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._waking = False
        self._started: Started | None = None
        self._echo: Echo | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._scores: list[TokenScore] = []
        self._last: Completed | Failed | None = None

    def post(self, event: Event) -> None:
        """Called on the engine's thread; never blocks. Events after the last are dropped."""
        with self._lock:
            if self._last is not None:
                return
            match event:
                case Started():
                    self._started = event
                case Echo():
                    self._echo = event
                case Delta():
                    self._texts.append(event.text)
                    self._token_ids.extend(event.token_ids)
                    self._scores.extend(event.scores)
                case Completed() | Failed():
                    self._last = event
            wake, self._waking = not self._waking, True
        if wake:
            # A closed loop has no callers left to tell.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    async def next(self) -> Event:
        """The next event, in order; the last one again and again once it came."""
        while True:
            with self._lock:
                event = self._take()
                if event is None:
                    self._ready.clear()
            if event is not None:
                return event
            await self._ready.wait()

    @property
    def ended(self) -> bool:
        """Whether the engine is done with the request."""
        with self._lock:
            return self._last is not None

    def _take(self) -> Event | None:
        if self._started is not None:
            started, self._started = self._started, None
            return started
        if self._echo is not None:
            echo, self._echo = self._echo, None
            return echo
        if self._token_ids or self._texts:
            delta = Delta("".join(self._texts), tuple(self._token_ids), tuple(self._scores))
            self._texts, self._token_ids, self._scores = [], [], []
            return delta
        return self._last

    def _wake(self) -> None:
        with self._lock:
            self._waking = False
            ended = self._last is not None
        self._ready.set()
        if ended:
            self._on_last()

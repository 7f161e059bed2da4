"""How much is in progress, and whether more is accepted. Pure Python; safe for threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from inference_node.errors import Draining, InvalidRequest, QueueFull
from inference_node.request import Request

CROWD = 8
"""Times as many requests as the queue has places left that one tenant may have in progress: a flood
leaves room for others. (Choudhury and Hahne, "Dynamic queue length thresholds", 1998.)"""


class Intake:
    """The door of the engine: open until `close`, and never open to more than it can hold."""

    def __init__(self, *, max_context: int, max_queue: int) -> None:
        self._max_context = max_context
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._open = True
        self._orders = 0
        self._of: Counter[str] = Counter()
        self.in_progress = 0
        """Accepted requests that have not ended."""

    @contextmanager
    def accept(self, request: Request) -> Iterator[int]:
        """Take a request in: its place in the order of acceptance. Close waits for the body.

        Raises Draining, QueueFull, or InvalidRequest when the prompt leaves no room for a token.
        """
        self._check_prompt(request)
        with self.opened():
            if self.in_progress >= self._max_queue:
                raise QueueFull(f"{self.in_progress} requests are in progress", retry_after=1.0)
            own = self._of[request.tenant]
            if own >= CROWD * (self._max_queue - self.in_progress):
                raise QueueFull(
                    f"{own} requests of tenant {request.tenant} are in progress; what is left of "
                    "the queue is for others",
                    retry_after=1.0,
                )
            self._orders += 1
            yield self._orders
            self.in_progress += 1
            self._of[request.tenant] += 1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Whatever the body posts comes before the end. Raises Draining once it is closed."""
        with self._changed:
            if not self._open:
                raise Draining("this node is stopping", hint="ask another node", retry_after=1.0)
            yield

    def ended(self, request: Request) -> None:
        """An accepted request was answered for the last time."""
        with self._changed:
            self.in_progress -= 1
            self._of[request.tenant] -= 1
            if not self._of[request.tenant]:
                del self._of[request.tenant]
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is accepted any more, and nothing is being accepted when this returns."""
        with self._changed:
            self._open = False

    def wait_empty(self, timeout: float) -> bool:
        """Block until nothing is in progress; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: self.in_progress == 0, timeout)

    def _check_prompt(self, request: Request) -> None:
        if not request.prompt:
            raise InvalidRequest("prompt", "is empty")
        if len(request.prompt) >= self._max_context:
            raise InvalidRequest(
                "prompt",
                f"has {len(request.prompt)} tokens, the context holds {self._max_context} "
                "with the answer",
            )

"""The one way into the engine thread."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from inference_node.adapters.reports import LoaderEvent
from inference_node.engine.orders import AnyOrder
from inference_node.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Submit:
    """A request was accepted."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for a request any more."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The last message."""


Message = Submit | Cancel | Stop | AnyOrder | LoaderEvent


class Inbox:
    """Messages in the order in which they were posted, from any thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def post(self, message: Message) -> None:
        self._queue.put(message)

    def take(self, *, wait: float | None, block: bool) -> list[Message]:
        """Everything there is; when `block`, at least one message unless `wait` seconds pass."""
        taken: list[Message] = []
        try:
            taken.append(self._queue.get(block=block, timeout=wait))
            while True:
                taken.append(self._queue.get(block=False))
        except queue.Empty:
            return taken

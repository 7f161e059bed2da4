"""Callers of a fleet: they ask at a steady rate, and carry the generations they saw."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

from inference_node.client import Answer, Client, Stopping
from inference_node.errors import NodeError
from tests.chaos.fleet.tattoos import Tattoos, name
from tests.inference_node.tattoo import Verdict

STREAM_EVERY, LONG = 10, 64
"""One request of so many is a stream of LONG tokens: there are always some in flight."""
_SHORT = Stopping(max_new_tokens=4, ignore_eos=True)
_PATIENCE_S = 30.0
_BEHIND_S = 1.0
"""By how much a caller that had to wait asks faster, until it has made up for it."""
_LONG = Stopping(max_new_tokens=LONG, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, and what came of it."""

    adapter: int
    began: float
    ended: float
    verdict: Verdict | None
    """None where it ended with an error."""
    reason: str = ""
    retryable: bool = True
    older: str = ""
    """How it fell behind what its caller had seen, or asked for at least."""


class Caller:
    """Asks for adapters in turn at a steady rate, and carries what it saw."""

    def __init__(self, front: str, adapters: int, rate: float, seed: int) -> None:
        self.calls: list[Call] = []
        self._front = front
        self._adapters = adapters
        self._pause = 1 / rate
        self._rng = random.Random(seed)
        self._seen: Counter[int] = Counter()

    def run(self, stop: threading.Event) -> None:
        with Client(self._front, monotonic=True) as client:
            due = time.monotonic() + self._rng.random() * self._pause
            while not stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + self._pause, time.monotonic() - _BEHIND_S)
                self.ask(client, self._popular())

    def _popular(self) -> int:
        """Some adapters are asked for far more often than others."""
        return min(int(self._rng.paretovariate(0.6)) - 1, self._adapters - 1)

    def ask(self, client: Client, adapter: int, *, min_generation: int = 0) -> None:
        """One request, noted."""
        self.calls.append(self._call(client, adapter, min_generation))

    def _call(self, client: Client, adapter: int, min_generation: int) -> Call:
        began = time.monotonic()
        try:
            answer = self._answer(client, adapter, min_generation)
        except NodeError as error:
            retryable = error.retry_after is not None or error.reason == "NODE_UNREACHABLE"
            text = f"{error.reason}: {error}"
            return Call(adapter, began, time.monotonic(), None, text, retryable)
        served, before = answer.served, max(self._seen[adapter], min_generation)
        self._seen[adapter] = max(before, served.generation)
        older = ""
        if served.generation < before:
            older = f"adapter {adapter} went from generation {before} to {served.generation}"
        verdict = Tattoos.read(adapter, served.version, answer.token_ids)
        return Call(adapter, began, time.monotonic(), verdict, older=older)

    def _answer(self, client: Client, adapter: int, min_generation: int) -> Answer:
        if self._rng.randrange(STREAM_EVERY):
            return client.generate(
                "x",
                adapter=name(adapter),
                stopping=_SHORT,
                min_generation=min_generation,
                timeout=_PATIENCE_S,
            )
        return client.stream(
            "x",
            adapter=name(adapter),
            stopping=_LONG,
            min_generation=min_generation,
            timeout=_PATIENCE_S,
        ).result

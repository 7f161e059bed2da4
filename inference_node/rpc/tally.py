"""What the node has answered since it started, counted as the engine hands it out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from inference_node.request import Completed, Delta, Event, Failed, OnEvent, Request

COUNTED = 1024
"""Adapters whose tokens are told apart: of more, those with the fewest are forgotten."""


@dataclass(frozen=True, slots=True)
class AdapterName:
    """Whose adapter, without a version; an empty name is the base model."""

    tenant: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the node started."""

    generated_tokens: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Answer:
    """One that is being given. Its tokens are counted by the one thread that posts its events."""

    name: AdapterName
    tokens: int = 0


class Tally:
    """Safe for several threads.

    A token costs an addition: an answer's are its own until it ends, and who reads adds them up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = self._completed = self._failed = 0
        self._of: Counter[AdapterName] = Counter()
        self._answers: set[_Answer] = set()
        """Those with tokens that have not ended."""

    def counting(self, request: Request, on_event: OnEvent) -> OnEvent:
        """`on_event`, counted on the way."""
        answer = _Answer(AdapterName(request.tenant, request.adapter.partition("@")[0]))

        def counted(event: Event) -> None:
            if isinstance(event, Delta):
                if not answer.tokens:
                    self._begin(answer)
                answer.tokens += len(event.token_ids)
            elif isinstance(event, Completed | Failed):
                self._end(answer, event)
            on_event(event)

        return counted

    @property
    def totals(self) -> Totals:
        with self._lock:
            tokens = self._tokens + sum(answer.tokens for answer in self._answers)
            return Totals(tokens, self._completed, self._failed)

    def hottest(self, number: int) -> Iterator[tuple[AdapterName, int]]:
        """The adapters with the most tokens, most first."""
        with self._lock:
            of = self._of.copy()
            for answer in self._answers:
                of[answer.name] += answer.tokens
        return iter(of.most_common(number))

    def _begin(self, answer: _Answer) -> None:
        with self._lock:
            self._answers.add(answer)

    def _end(self, answer: _Answer, last: Completed | Failed) -> None:
        with self._lock:
            self._answers.discard(answer)
            if isinstance(last, Completed):
                self._completed += 1
            else:
                self._failed += 1
            if answer.tokens:
                self._tokens += answer.tokens
                self._of[answer.name] += answer.tokens
            if len(self._of) > 2 * COUNTED:
                self._of = Counter(dict(self._of.most_common(COUNTED)))

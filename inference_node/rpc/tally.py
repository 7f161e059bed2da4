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


class Tally:
    """Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = self._completed = self._failed = 0
        self._of: Counter[AdapterName] = Counter()

    def counting(self, request: Request, on_event: OnEvent) -> OnEvent:
        """`on_event`, counted on the way."""
        name = AdapterName(request.tenant, request.adapter.partition("@")[0])

        def counted(event: Event) -> None:
            self._count(name, event)
            on_event(event)

        return counted

    @property
    def totals(self) -> Totals:
        with self._lock:
            return Totals(self._tokens, self._completed, self._failed)

    def hottest(self, number: int) -> Iterator[tuple[AdapterName, int]]:
        """The adapters with the most tokens, most first."""
        with self._lock:
            return iter(self._of.most_common(number))

    def _count(self, name: AdapterName, event: Event) -> None:
        with self._lock:
            match event:
                case Delta(token_ids=token_ids):
                    self._tokens += len(token_ids)
                    self._of[name] += len(token_ids)
                    if len(self._of) > 2 * COUNTED:
                        self._of = Counter(dict(self._of.most_common(COUNTED)))
                case Completed():
                    self._completed += 1
                case Failed():
                    self._failed += 1
                case _:
                    pass

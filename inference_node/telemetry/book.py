"""What has ended on this node, counted: requests by outcome and by the version that served them."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from inference_node.distribution import Histogram
from inference_node.ended import Ended, Outcome
from inference_node.request import Served
from inference_node.telemetry import series
from inference_node.telemetry.page import Page
from inference_node.telemetry.shortlist import Shortlist

REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
VERSION_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PER_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1)
KEPT_VERSIONS = 4
"""Of one adapter: those that served last."""

AdapterKey = tuple[str, str]
"""Tenant and adapter."""
VersionLabels = tuple[str, str, str, str]
"""Tenant, adapter, version and generation."""


@dataclass(slots=True)
class _Figures:
    """Of one version."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(VERSION_SECONDS))
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    per_token: Histogram = field(default_factory=lambda: Histogram(PER_TOKEN_SECONDS))

    def count(self, ended: Ended) -> None:
        self.outcomes[ended.outcome] += 1
        self.prompt_tokens += ended.prompt_tokens
        self.generated_tokens += ended.generated_tokens
        if ended.first_token is not None:
            self.first_token.observe(ended.first_token)
        if ended.outcome is Outcome.COMPLETED:
            self.seconds.observe(ended.seconds)
            if ended.timings is not None and ended.generated_tokens > 1:
                self.per_token.observe(ended.timings.decode / (ended.generated_tokens - 1))

    def write(self, page: Page, labels: VersionLabels) -> None:
        for outcome in Outcome:
            page.put(series.VERSION_REQUESTS, self.outcomes[outcome], *labels, outcome.value)
        page.put(series.VERSION_PROMPT_TOKENS, self.prompt_tokens, *labels)
        page.put(series.VERSION_GENERATED_TOKENS, self.generated_tokens, *labels)
        page.spread(series.VERSION_SECONDS, self.seconds.read(), *labels)
        page.spread(series.VERSION_FIRST_TOKEN, self.first_token.read(), *labels)
        page.spread(series.VERSION_PER_TOKEN, self.per_token.read(), *labels)


class Book:
    """Counts on the event loop, is read by scrapes; safe for threads.

    An adapter that loses its place takes its series with it: should it come back they begin at
    zero, as after a restart.
    """

    def __init__(self, *, adapters: int, clock: Callable[[], float]) -> None:
        """`adapters` have series of their own, the base model beside them."""
        self._lock = threading.Lock()
        self._requests: Counter[tuple[Outcome, str]] = Counter()
        self._seconds = {outcome: Histogram(REQUEST_SECONDS) for outcome in Outcome}
        self._rpcs: Counter[tuple[str, str]] = Counter()
        self._of: dict[AdapterKey, OrderedDict[VersionLabels, _Figures]] = {}
        self._others = _Figures()
        self._shortlist: Shortlist[AdapterKey] = Shortlist(
            adapters, clock=clock, on_dropped=self._drop
        )

    def ended(self, ended: Ended) -> None:
        """A request to generate is over."""
        with self._lock:
            self._requests[ended.outcome, ended.reason] += 1
            self._seconds[ended.outcome].observe(ended.seconds)
            if ended.served is not None:
                self._figures(ended.served).count(ended)

    def answered(self, method: str, code: str) -> None:
        """A call of a method that the node has is over."""
        with self._lock:
            self._rpcs[method, code] += 1

    def write(self, page: Page) -> None:
        with self._lock:
            for (outcome, reason), number in self._requests.items():
                page.put(series.REQUESTS, number, outcome.value, reason)
            for outcome, seconds in self._seconds.items():
                page.spread(series.REQUEST_SECONDS, seconds.read(), outcome.value)
            for (method, code), number in self._rpcs.items():
                page.put(series.RPCS, number, method, code)
            for versions in self._of.values():
                for labels, figures in versions.items():
                    figures.write(page, labels)
            self._others.write(page, (series.OTHER,) * 4)

    def _drop(self, key: AdapterKey) -> None:
        # One that was given its place and was not used since has no figures.
        self._of.pop(key, None)

    def _figures(self, served: Served) -> _Figures:
        key = (served.tenant, served.adapter)
        if not served.adapter:
            key = ("", series.BASE)
        elif not self._shortlist.use(key):
            return self._others
        versions = self._of.setdefault(key, OrderedDict())
        labels = (*key, served.version, str(served.generation))
        if labels not in versions:
            versions[labels] = _Figures()
            if len(versions) > KEPT_VERSIONS:
                versions.popitem(last=False)
        versions.move_to_end(labels)
        return versions[labels]

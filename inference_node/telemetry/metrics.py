"""The page that scrapes get: told by the server what ends, asking the engine for the rest."""

from __future__ import annotations

import time
from typing import Self

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

from inference_node.ended import Ended
from inference_node.telemetry.audit import Audit
from inference_node.telemetry.book import Book
from inference_node.telemetry.collector import NodeCollector, Observed
from inference_node.telemetry.listener import Listener
from inference_node.telemetry.refused import RefusedRecords


class Metrics:
    """A witness of the server's calls, and the page that scrapes get. A context: it listens."""

    def __init__(
        self,
        engine: Observed,
        *,
        listen: str,
        adapters: int,
        records_refused: RefusedRecords,
        audit: Audit | None = None,
    ) -> None:
        """At most `adapters` have series of their own.

        Raises BadConfiguration when the address cannot be had.
        """
        self._book = Book(adapters=adapters, clock=time.monotonic)
        self._collector = NodeCollector(
            engine,
            self._book,
            adapters=adapters,
            records_refused=records_refused.read,
            audit_lost=None if audit is None else lambda: audit.lost,
        )
        self.registry = CollectorRegistry()
        self.registry.register(self._collector)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._listener = Listener(listen, self.registry)

    @property
    def address(self) -> str:
        """host:port, the port that was had."""
        return self._listener.address

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.stop()

    def ended(self, ended: Ended) -> None:
        self._book.ended(ended)

    def answered(self, method: str, code: str) -> None:
        self._book.answered(method, code)

    def leaving(self) -> None:
        self._collector.draining = True

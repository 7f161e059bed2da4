"""Where a request's time went, told across processes: what the node and its client say while they
work. Off unless somebody brings `inference_node.telemetry.otel`; then `OFF` is what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Trace = object
"""A place in a trace, for spans to be children of; what it is only the tracing knows."""
Headers = tuple[tuple[str, str], ...]
Received = Callable[[], Iterable[tuple[str, str | bytes]] | None]
"""Metadata that a call came with, read where somebody traces: that takes as long as a token."""
Attributes = Mapping[str, str | int | float]


class Calling(Protocol):
    """A call that a client makes."""

    @property
    def headers(self) -> Headers:
        """Metadata by which the node continues the trace."""
        ...

    def end(self, problem: str = "") -> None:
        """It has ended, well or with a problem."""
        ...


class Serving(Protocol):
    """A call that a node serves."""

    def answered(self, code: str) -> None:
        """With which gRPC status it ended."""
        ...


class Tracing(Protocol):
    """Safe for threads."""

    def calling(self, method: str) -> Calling:
        """A client begins to call `package.Service/Method`."""
        ...

    def serving(self, method: str, headers: Received) -> AbstractContextManager[Serving]:
        """The body serves a call that came with `headers`, in the trace that they name."""
        ...

    def current(self) -> Trace | None:
        """The call that is being served here."""
        ...

    def work(
        self, name: str, parent: Trace | None, attributes: Attributes
    ) -> AbstractContextManager[None]:
        """The body is work done for `parent`, on any thread; without one, a trace of its own."""
        ...


class _Nothing:
    headers: Headers = ()

    def end(self, problem: str = "") -> None: ...

    def answered(self, code: str) -> None: ...


class Off:
    """Traces nothing."""

    _nothing = _Nothing()
    _serving = nullcontext(_nothing)

    def calling(self, method: str) -> Calling:
        return self._nothing

    def serving(self, method: str, headers: Received) -> AbstractContextManager[Serving]:
        return self._serving

    def current(self) -> Trace | None:
        return None

    def work(
        self, name: str, parent: Trace | None, attributes: Attributes
    ) -> AbstractContextManager[None]:
        return nullcontext()


OFF = Off()

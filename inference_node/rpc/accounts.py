"""What becomes of each call, told once to whoever counts and logs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import grpc

from inference_node.ended import Ended, Outcome, outcome_of
from inference_node.errors import Cancelled, EngineFailure, NodeError
from inference_node.request import Completed, Delta, Event, Failed, Request, Served, Started
from inference_node.rpc.auth import POLICIES, caller
from inference_node.rpc.handlers import Around, Wrapping
from inference_node.tracing import OFF, Tracing

Context = grpc.aio.ServicerContext[Any, Any]
OURS = "lorapool."
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_log = logging.getLogger(__name__)


class Witness(Protocol):
    """Is told on the event loop, and must not block it."""

    def ended(self, ended: Ended) -> None:
        """A request to generate is over."""
        ...

    def answered(self, method: str, code: str) -> None:
        """A call of `method`, `package.Service/Method`, is over."""
        ...

    def leaving(self) -> None:
        """The node has been told to leave."""
        ...


class Nobody:
    """A witness that forgets."""

    def ended(self, ended: Ended) -> None: ...

    def answered(self, method: str, code: str) -> None: ...

    def leaving(self) -> None: ...


NOBODY = Nobody()


class Witnesses:
    """Several as one; the trouble of one is neither another's nor the caller's."""

    def __init__(self, *witnesses: Witness) -> None:
        self._all = witnesses

    def ended(self, ended: Ended) -> None:
        self._tell(lambda witness: witness.ended(ended))

    def answered(self, method: str, code: str) -> None:
        self._tell(lambda witness: witness.answered(method, code))

    def leaving(self) -> None:
        self._tell(lambda witness: witness.leaving())

    def _tell(self, tell: Callable[[Witness], None]) -> None:
        for witness in self._all:
            try:
                tell(witness)
            except Exception:
                _log.exception("what was told of a call is lost")


class Account:
    """One request to generate: tells `witness` how the body ended, whatever it raised."""

    def __init__(
        self, method: str, witness: Witness, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._method = method
        self._witness = witness
        self._clock = clock
        self._began = clock()
        self._request: Request | None = None
        self._served: Served | None = None
        self._completed: Completed | None = None
        self._first_token: float | None = None
        self.tokens = 0
        """On their way to the caller."""

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        gone = isinstance(error, asyncio.CancelledError)
        self._witness.ended(self._close(Cancelled("the caller went away") if gone else error))

    def accept(self, request: Request) -> None:
        """What was asked obeys its bounds."""
        self._request = request

    def note(self, event: Event) -> None:
        """One event of the engine, on its way to the caller."""
        match event:
            case Delta():
                self.tokens += len(event.token_ids)
                if self._first_token is None:
                    self._first_token = self._clock() - self._began
            case Started(served):
                self._served = served
            case Completed():
                self._completed = event
            case Failed(served=served):
                self._served = served or self._served
            case _:
                pass

    def _close(self, error: BaseException | None) -> Ended:
        """`error` is what the request ended with instead of its last token."""
        request, done = self._request, self._completed
        if error is None and done is not None:
            outcome, reason = Outcome.COMPLETED, done.finish_reason.value.upper()
        else:
            outcome, reason = outcome_of(error or EngineFailure("")), _reason(error)
        return Ended(
            method=self._method,
            request_id=request.request_id if request else "",
            caller=caller().name,
            tenant=request.tenant if request else "",
            adapter=request.adapter if request else "",
            served=self._served,
            outcome=outcome,
            reason=reason,
            prompt_tokens=len(request.prompt) if request else 0,
            cached_tokens=done.usage.cached_tokens if done else 0,
            generated_tokens=self.tokens,
            seconds=self._clock() - self._began,
            first_token=self._first_token,
            timings=done.timings if done else None,
        )


class Counted(Wrapping):
    """Tells a witness with which status each call ended. The first interceptor: it sees all.

    Calls of our own services are traced.
    """

    def __init__(self, witness: Witness, tracing: Tracing) -> None:
        super().__init__()
        self._witness = witness
        self._tracing = tracing

    def around(self, method: str) -> Around | None:
        if method not in POLICIES:
            return None
        tracing = self._tracing if method.startswith(f"/{OURS}") else OFF
        return partial(_Counting, method.lstrip("/"), self._witness, tracing)


class _Counting:
    """One call."""

    __slots__ = ("_context", "_method", "_serving", "_span", "_witness")

    def __init__(self, method: str, witness: Witness, tracing: Tracing, context: Context) -> None:
        self._method = method
        self._witness = witness
        self._context = context
        self._span = tracing.serving(method, context.invocation_metadata)

    async def __aenter__(self) -> None:
        self._serving = self._span.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            code = grpc.StatusCode.CANCELLED
        else:
            unsaid = grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN
            code = _code(self._context, unsaid)
        try:
            self._witness.answered(self._method, code.name)
            self._serving.answered(code.name)
        finally:
            self._span.__exit__(kind, error, trace)


def _code(context: Context, default: grpc.StatusCode) -> grpc.StatusCode:
    """What the handler has set, which the library keeps as a number."""
    found = context.code()
    if isinstance(found, grpc.StatusCode):
        return found
    return _CODES.get(found, default) if found else default


def _reason(error: BaseException | None) -> str:
    return error.reason if isinstance(error, NodeError) else NodeError.reason

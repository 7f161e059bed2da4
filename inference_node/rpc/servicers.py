"""One short method per RPC: convert, hand to the engine, convert back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import grpc

from adapter_store.layout import DEFAULT_TENANT
from inference_node.errors import DeadlineExpired, InvalidRequest, RequestInFlight
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.request import (
    Completed,
    Delta,
    Echo,
    Event,
    Failed,
    Request,
    Started,
)
from inference_node.rpc import answers, convert
from inference_node.rpc.accounts import Account, Witness
from inference_node.rpc.auth import check_priority, grant
from inference_node.rpc.engine_port import Engine
from inference_node.rpc.mailbox import Bell, Mailbox, joined
from inference_node.rpc.quotas import Quotas
from inference_node.rpc.request_ids import RequestIds
from inference_node.rpc.status import Answering
from inference_node.rpc.tally import Tally
from inference_node.tracing import Tracing

ANSWER_GRACE = 5.0
"""Seconds past its deadline after which a request is given up: the engine never answered, or nobody
reads its answer."""

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """`lorapool.v1.InferenceService`."""

    def __init__(
        self,
        engine: Engine,
        tally: Tally,
        quotas: Quotas,
        witness: Witness,
        tracing: Tracing,
        *,
        max_request_seconds: float,
    ) -> None:
        self._engine = engine
        self._tally = tally
        self._witness = witness
        self._tracing = tracing
        self._quotas = quotas
        self._max_request_seconds = max_request_seconds
        self._bounds = convert.Bounds(engine.info().max_context, engine.tokenizer.vocab_size)
        # Tokenising a long prompt takes tens of milliseconds, which the loop must not lose.
        self._tokenising = ThreadPoolExecutor(2, thread_name_prefix="tokenise")
        self._written = engine.tokenizer.written
        self._new_id = RequestIds()
        self._in_flight: set[str] = set()
        self._bell: Bell | None = None
        """Of the loop that serves, which does not run yet."""

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        async with Answering(context):
            return await self._accepted("Generate", request, context, self._answer)

    # Written to the context, not yielded: a generator that is never resumed would learn of its
    # caller's leaving only when it is collected.
    async def StreamGenerate(  # type: ignore[override]
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        async with Answering(context):
            if not request.HasField("request"):
                raise InvalidRequest("request", "is required")
            await self._accepted("StreamGenerate", request.request, context, self._stream)

    async def _answer(self, call: _Call, context: Context) -> pb.GenerateResponse:
        said: list[Delta] = []
        echo: Echo | None = None
        while True:
            match call.take():
                case Delta() as delta:
                    said.append(delta)
                case None:
                    await call.arrival()
                case Started() as started:
                    await context.send_initial_metadata(answers.served_metadata(started.served))
                case Echo() as echo:
                    pass
                case Completed() as completed:
                    content = joined(said)
                    make = partial(
                        answers.answer, completed, content, call.request_id, echo, self._written
                    )
                    if content.scores or echo:
                        return await self._off_the_loop(make)
                    return make()
                case Failed() as failed:
                    raise failed.error

    async def _stream(self, call: _Call, context: Context) -> None:
        while True:
            match call.take():
                case Delta() as delta:
                    await context.write(answers.delta_event(delta, self._written))
                case None:
                    await call.arrival()
                case Started() as started:
                    await context.send_initial_metadata(answers.served_metadata(started.served))
                    await context.write(answers.started_event(started, call.request_id))
                case Echo() as echo:
                    make = partial(answers.echo_event, echo, self._written)
                    await context.write(await self._off_the_loop(make))
                case Completed() as completed:
                    await context.write(answers.completed_event(completed))
                    return
                case Failed() as failed:
                    raise failed.error

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        async with Answering(context):
            ids = await self._off_the_loop(
                lambda: convert.to_tokens(
                    request, bounds=self._bounds, encoder=self._engine.tokenizer
                )
            )
            return pb.TokenizeResponse(token_ids=ids, max_context=self._bounds.max_context)

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        async with Answering(context):
            tokens = self._tally.totals.generated_tokens
            return answers.model_info(replace(self._engine.info(), generated_tokens=tokens))

    async def _off_the_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenising, work)

    def close(self) -> None:
        self._tokenising.shutdown(wait=False, cancel_futures=True)

    async def _accepted(
        self,
        method: str,
        message: pb.GenerateRequest,
        context: Context,
        answer: Callable[[_Call, Context], Awaitable[T]],
    ) -> T:
        """Submit, and cancel at once when `answer` is left before the engine is done.

        Raises DeadlineExpired when the engine, or whoever reads, takes too long.
        """
        with Account(method, self._witness) as opened:
            read = self._reading(message, context)
            quick = convert.is_quick(message)
            request = read() if quick else await self._off_the_loop(read)
            opened.accept(request)
            check_priority(request.priority)
            granted = grant(request.tenant, request.adapter)
            tokens = len(request.prompt) + request.stopping.max_new_tokens
            trace = self._tracing.current()
            asked = (request.tenant, request.adapter, request.trace)
            if asked != (granted.tenant, granted.adapter, trace):
                request = replace(
                    request, tenant=granted.tenant, adapter=granted.adapter, trace=trace
                )
            with (
                granted.in_words_of_the_question(),
                self._quotas.stay(granted.tenant, tokens=tokens, priority=request.priority) as stay,
                self._submit(request, opened) as call,
            ):
                overdue = (request.deadline or math.inf) + ANSWER_GRACE - time.monotonic()
                try:
                    async with asyncio.timeout(overdue) as patience:
                        return await answer(call, context)
                except TimeoutError:
                    if not patience.expired():
                        raise
                    raise DeadlineExpired("there was no end by the deadline") from None
                finally:
                    stay.used = len(request.prompt) + opened.tokens

    def _reading(self, message: pb.GenerateRequest, context: Context) -> Callable[[], Request]:
        """The request, checked, once called. Raises InvalidRequest, now and then."""
        convert.check_route(context.invocation_metadata(), message.adapter)
        remaining = context.time_remaining()
        limit = self._max_request_seconds
        deadline = time.monotonic() + (limit if remaining is None else min(remaining, limit))
        return partial(
            convert.to_request,
            message,
            bounds=self._bounds,
            encoder=self._engine.tokenizer,
            deadline=deadline,
            new_id=self._new_id,
        )

    def _submit(self, request: Request, opened: Account) -> _Call:
        """Its events, under an id that no other tenant's request can have."""
        request_id = request.request_id
        if request.tenant != DEFAULT_TENANT:
            # Callers' own ids have no spaces.
            request = replace(request, request_id=f"{request.tenant} {request_id}")
        known_as = request.request_id
        if known_as in self._in_flight:
            raise RequestInFlight("request_id", f"{request_id!r} is still in flight on this node")
        # Held until the engine is done with it, which after a cancel is one step later.
        self._in_flight.add(known_as)
        self._bell = self._bell or Bell()
        mailbox = Mailbox(self._bell, on_last=partial(self._in_flight.discard, known_as))
        try:
            self._engine.submit(request, self._tally.counting(request, mailbox.post))
        except BaseException:
            self._in_flight.discard(known_as)
            raise
        return _Call(request_id, mailbox, opened, partial(self._engine.cancel, known_as))


@dataclass(slots=True)
class _Call:
    """One submitted request and its events; left before the engine is done, it is cancelled."""

    request_id: str
    _mailbox: Mailbox
    _account: Account
    _cancel: Callable[[], None]

    def __enter__(self) -> _Call:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._mailbox.ended:
            self._cancel()

    def take(self) -> Event | None:
        """The next one if there is one, of deltas all that wait."""
        event = self._mailbox.take()
        if event is not None:
            self._account.note(event)
        return event

    async def arrival(self) -> None:
        """Wait until there may be something to take."""
        await self._mailbox.arrival()

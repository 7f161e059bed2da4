"""One short method per RPC: convert, hand to the engine, convert back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
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
from inference_node.rpc.accounts import Account, Witness, account
from inference_node.rpc.auth import check_priority, grant
from inference_node.rpc.engine_port import Engine
from inference_node.rpc.mailbox import Bell, Mailbox, joined
from inference_node.rpc.quotas import Quotas, Stay
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
        self._in_flight: set[str] = set()
        self._bell: Bell | None = None
        """Of the loop that serves, which does not run yet."""

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        async with Answering(context), self._accepted("Generate", request, context) as call:
            said: list[Delta] = []
            echo: Echo | None = None
            while True:
                for event in await call.news():
                    match event:
                        case Started() as started:
                            await context.send_initial_metadata(
                                answers.served_metadata(started.served)
                            )
                        case Echo() as echo:
                            pass
                        case Delta() as delta:
                            said.append(delta)
                        case Completed() as completed:
                            content = joined(said)
                            make = partial(
                                answers.answer,
                                completed,
                                content,
                                call.request_id,
                                echo,
                                self._written,
                            )
                            if content.scores or echo:
                                return await self._off_the_loop(make)
                            return make()
                        case Failed() as failed:
                            raise failed.error

    # Written to the context, not yielded: a generator that is never resumed would learn of its
    # caller's leaving only when it is collected.
    async def StreamGenerate(  # type: ignore[override]
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        async with Answering(context):
            if not request.HasField("request"):
                raise InvalidRequest("request", "is required")
            async with self._accepted("StreamGenerate", request.request, context) as call:
                while True:
                    for event in await call.news():
                        match event:
                            case Started() as started:
                                await context.send_initial_metadata(
                                    answers.served_metadata(started.served)
                                )
                                await context.write(answers.started_event(started, call.request_id))
                            case Echo() as echo:
                                await context.write(
                                    await self._off_the_loop(
                                        partial(answers.echo_event, echo, self._written)
                                    )
                                )
                            case Delta() as delta:
                                await context.write(answers.delta_event(delta, self._written))
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

    @contextlib.asynccontextmanager
    async def _accepted(
        self, method: str, message: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[_Call]:
        """Submit, and cancel at once when the body is left before the engine is done.

        Raises DeadlineExpired in the body when the engine, or whoever reads, takes too long.
        """
        with account(method, self._witness) as opened:
            request = await self._read(message, context)
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
                self._submitted(request) as mailbox,
            ):
                stay.used = len(request.prompt)
                overdue = (request.deadline or math.inf) + ANSWER_GRACE - time.monotonic()
                try:
                    async with asyncio.timeout(overdue) as patience:
                        yield _Call(request.request_id, mailbox, stay, opened)
                except TimeoutError:
                    if not patience.expired():
                        raise
                    raise DeadlineExpired("there was no end by the deadline") from None

    async def _read(self, message: pb.GenerateRequest, context: Context) -> Request:
        """The request, checked. Raises InvalidRequest."""
        convert.check_route(context.invocation_metadata(), message.adapter)
        remaining = context.time_remaining()
        limit = self._max_request_seconds
        deadline = time.monotonic() + (limit if remaining is None else min(remaining, limit))
        read = partial(
            convert.to_request,
            message,
            bounds=self._bounds,
            encoder=self._engine.tokenizer,
            deadline=deadline,
        )
        return read() if convert.is_quick(message) else await self._off_the_loop(read)

    @contextlib.contextmanager
    def _submitted(self, request: Request) -> Iterator[Mailbox]:
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
        mailbox = Mailbox(self._bell, on_last=lambda: self._in_flight.discard(known_as))
        try:
            self._engine.submit(request, self._tally.counting(request, mailbox.post))
        except BaseException:
            self._in_flight.discard(known_as)
            raise
        try:
            yield mailbox
        finally:
            if not mailbox.ended:
                self._engine.cancel(known_as)


@dataclass(frozen=True, slots=True)
class _Call:
    """One submitted request and its events."""

    request_id: str
    mailbox: Mailbox
    stay: Stay
    account: Account

    async def news(self) -> list[Event]:
        """What came since the last time, at least one event."""
        events = await self.mailbox.news()
        for event in events:
            self.account.note(event)
            if isinstance(event, Delta):
                self.stay.used += len(event.token_ids)
        return events

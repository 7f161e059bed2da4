"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2_grpc

from inference_node.client.access import NOBODY, Access
from inference_node.client.catalog import AsyncCatalog
from inference_node.client.failures import to_error
from inference_node.client.generations import Generations
from inference_node.client.link import (
    DEFAULT_ADDRESS,
    GENERATE,
    STREAM_GENERATE,
    Addresses,
    affinity,
    open_async_channel,
)
from inference_node.client.messages import (
    DEFAULT_TIMEOUT,
    GREEDY,
    READINESS,
    TEXT_ALONE,
    TO_THE_END,
    Answer,
    Assembly,
    Prompt,
    is_serving,
    to_answer,
    to_message,
    to_model_info,
    to_tokenize,
)
from inference_node.client.retries import Attempts
from inference_node.client.scores import Echo, TokenLogprob
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.request import ModelInfo, Output, Sampling, Served, Stopping
from inference_node.text import ChatMessage as Message
from inference_node.tracing import OFF, Tracing


class AsyncClient:
    """The same for asyncio."""

    def __init__(
        self,
        address: Addresses = DEFAULT_ADDRESS,
        *,
        access: Access = NOBODY,
        monotonic: bool = False,
        tracing: Tracing = OFF,
    ) -> None:
        """Connects on the first call; belongs to the running loop. Raises BadConfiguration.

        A list of addresses sends each adapter to the node that has it. `tracing` is
        `inference_node.telemetry.otel.OtelTracing()` where calls are to be traced.
        """
        self._tracing = tracing
        self._channel = open_async_channel(address, access)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._seen = Generations() if monotonic else None
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self.catalog = AsyncCatalog(self._channel)
        """What is published."""

    async def generate(
        self,
        prompt: Prompt,
        *,
        adapter: str = "",
        tenant: str = "",
        sampling: Sampling = GREEDY,
        stopping: Stopping = TO_THE_END,
        output: Output = TEXT_ALONE,
        min_generation: int = 0,
        request_id: str = "",
        priority: int = 0,
        affinity_key: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Answer:
        """The whole answer. Raises NodeError; cancelling the task stops the node."""
        message = to_message(
            prompt,
            adapter=adapter,
            tenant=tenant,
            sampling=sampling,
            stopping=stopping,
            output=output,
            min_generation=self._least(tenant, adapter, min_generation),
            request_id=request_id,
            priority=priority,
            affinity_key=affinity_key,
        )
        calling = self._tracing.calling(GENERATE)
        problem = ""
        try:
            answered = await self._stub.Generate(
                message, timeout=timeout, metadata=(*affinity(adapter), *calling.headers)
            )
        except grpc.aio.AioRpcError as error:
            failure = to_error(error)
            problem = failure.reason
            raise failure from None
        finally:
            calling.end(problem)
        answer = to_answer(answered)
        self._note(adapter, answer.served)
        return answer

    def stream(
        self,
        prompt: Prompt,
        *,
        adapter: str = "",
        tenant: str = "",
        sampling: Sampling = GREEDY,
        stopping: Stopping = TO_THE_END,
        output: Output = TEXT_ALONE,
        min_generation: int = 0,
        request_id: str = "",
        priority: int = 0,
        affinity_key: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AsyncStream:
        """The answer piece by piece. Raises NodeError while it is iterated."""
        message = to_message(
            prompt,
            adapter=adapter,
            tenant=tenant,
            sampling=sampling,
            stopping=stopping,
            output=output,
            min_generation=self._least(tenant, adapter, min_generation),
            request_id=request_id,
            priority=priority,
            affinity_key=affinity_key,
        )
        opened = partial(self._open, pb.StreamGenerateRequest(request=message), adapter)
        return AsyncStream(opened, partial(self._note, adapter), Attempts(timeout))

    def _open(self, message: pb.StreamGenerateRequest, adapter: str, timeout: float) -> Reading:
        calling = self._tracing.calling(STREAM_GENERATE)
        call: Reading = self._stub.StreamGenerate(
            message, timeout=timeout, metadata=(*affinity(adapter), *calling.headers)
        )
        call.add_done_callback(lambda _: calling.end())
        return call

    async def tokenize(
        self, prompt: str | Sequence[Message], *, timeout: float = 10.0
    ) -> tuple[int, ...]:
        """The prompt as the model reads it. Raises NodeError."""
        try:
            answer = await self._stub.Tokenize(to_tokenize(prompt), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None
        return tuple(answer.token_ids)

    async def model_info(self, *, timeout: float = 10.0) -> ModelInfo:
        """What the node serves. Raises NodeError."""
        try:
            return to_model_info(
                await self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=timeout)
            )
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None

    async def ready(self, *, timeout: float = 5.0) -> bool:
        """Whether the node takes requests. Raises NodeUnreachable when it does not answer."""
        try:
            return is_serving(await self._health.Check(READINESS, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None

    def _least(self, tenant: str, adapter: str, asked: int) -> int:
        return asked if self._seen is None else self._seen.at_least(tenant, adapter, asked)

    def _note(self, asked: str, served: Served) -> None:
        if self._seen is not None:
            self._seen.note(asked, served)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


Reading = grpc.aio.UnaryStreamCall[pb.StreamGenerateRequest, pb.StreamGenerateResponse]


class AsyncStream:
    """An answer as it is decoded: iterate for text, once; leave the `with` block to cancel."""

    def __init__(
        self,
        opened: Callable[[float], Reading],
        on_started: Callable[[Served], None],
        attempts: Attempts,
    ) -> None:
        """`opened` makes the call, with so many seconds for it."""
        self._opened = opened
        self._attempts = attempts
        self._call = opened(attempts.left)
        self._cancelled = asyncio.Event()
        self._begun = False
        self._assembly = Assembly(on_started)

    @property
    def served(self) -> Served | None:
        """Which version answers; known once the first text came, or `started` returned."""
        return self._assembly.started

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of the tokens read so far, where they were asked for."""
        return tuple(self._assembly.logprobs)

    @property
    def echo(self) -> Echo | None:
        """The prompt, where it was asked for; known once the first text came."""
        return self._assembly.echo

    @property
    def result(self) -> Answer:
        """The whole answer, after the stream has ended. Raises CallFailed before that."""
        return self._assembly.whole()

    async def started(self) -> Served:
        """Wait until it is settled which version answers. Raises NodeError."""
        while self._assembly.started is None:
            event = await self._next()
            if event is None:
                return self._assembly.whole().served
            self._assembly.take(event)
        return self._assembly.started

    async def finish(self) -> Answer:
        """Read to the end; the whole answer. Raises NodeError."""
        while (event := await self._next()) is not None:
            self._assembly.take(event)
        return self._assembly.whole()

    def cancel(self) -> None:
        """Stop decoding; what was read stays read."""
        self._cancelled.set()
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[str]:
        while (event := await self._next()) is not None:
            if text := self._assembly.take(event):
                yield text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _next(self) -> pb.StreamGenerateResponse | None:
        while True:
            try:
                event = await self._call.read()
            except grpc.aio.AioRpcError as error:
                await self._open_again(error)
            else:
                self._begun = True
                return event if isinstance(event, pb.StreamGenerateResponse) else None

    async def _open_again(self, failed: grpc.aio.AioRpcError) -> None:
        """Raises NodeError if what has failed is not to be tried again."""
        pause = None if self._begun else self._attempts.pause(failed)
        if pause is None:
            raise to_error(failed) from None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), pause)
            raise to_error(failed) from None
        self._call = self._opened(self._attempts.left)

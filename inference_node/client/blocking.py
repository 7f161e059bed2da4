"""The client for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import grpc
from grpc_health.v1 import health_pb2_grpc

from inference_node.client.access import NOBODY, Access
from inference_node.client.catalog import Catalog
from inference_node.client.failures import to_error
from inference_node.client.generations import Generations
from inference_node.client.link import (
    DEFAULT_ADDRESS,
    GENERATE,
    STREAM_GENERATE,
    Addresses,
    affinity,
    open_channel,
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


class Client:
    """Blocking calls to one node; safe to share between threads."""

    def __init__(
        self,
        address: Addresses = DEFAULT_ADDRESS,
        *,
        access: Access = NOBODY,
        monotonic: bool = False,
        tracing: Tracing = OFF,
    ) -> None:
        """Connects on the first call. Raises BadConfiguration for what `access` cannot be.

        A list of addresses sends each adapter to the node that has it. `tracing` is
        `inference_node.telemetry.otel.OtelTracing()` where calls are to be traced.
        """
        self._tracing = tracing
        self._channel = open_channel(address, access)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._seen = Generations() if monotonic else None
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self.catalog = Catalog(self._channel)
        """What is published."""

    def generate(
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
        """The whole answer. Raises NodeError; the node stops decoding after `timeout` seconds."""
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
            answered = self._stub.Generate(
                message, timeout=timeout, metadata=(*affinity(adapter), *calling.headers)
            )
        except grpc.RpcError as error:
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
    ) -> Stream:
        """The answer piece by piece. Raises NodeError, here or while it is iterated."""
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
        return Stream(opened, partial(self._note, adapter), Attempts(timeout))

    def _open(self, message: pb.StreamGenerateRequest, adapter: str, timeout: float) -> Reading:
        calling = self._tracing.calling(STREAM_GENERATE)
        call = self._stub.StreamGenerate(
            message, timeout=timeout, metadata=(*affinity(adapter), *calling.headers)
        )
        # Called once it has ended, whoever ended it.
        if not call.add_callback(calling.end):
            calling.end()
        return call

    def tokenize(
        self, prompt: str | Sequence[Message], *, timeout: float = 10.0
    ) -> tuple[int, ...]:
        """The prompt as the model reads it. Raises NodeError."""
        try:
            return tuple(self._stub.Tokenize(to_tokenize(prompt), timeout=timeout).token_ids)
        except grpc.RpcError as error:
            raise to_error(error) from None

    def model_info(self, *, timeout: float = 10.0) -> ModelInfo:
        """What the node serves. Raises NodeError."""
        try:
            return to_model_info(self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=timeout))
        except grpc.RpcError as error:
            raise to_error(error) from None

    def ready(self, *, timeout: float = 5.0) -> bool:
        """Whether the node takes requests. Raises NodeUnreachable when it does not answer."""
        try:
            return is_serving(self._health.Check(READINESS, timeout=timeout))
        except grpc.RpcError as error:
            raise to_error(error) from None

    def _least(self, tenant: str, adapter: str, asked: int) -> int:
        return asked if self._seen is None else self._seen.at_least(tenant, adapter, asked)

    def _note(self, asked: str, served: Served) -> None:
        if self._seen is not None:
            self._seen.note(asked, served)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Reading(Protocol):
    """The part of a streaming call that is used here; gRPC has no public name for it."""

    def __next__(self) -> pb.StreamGenerateResponse: ...

    def cancel(self) -> bool: ...


class Stream:
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
        self._cancelled = threading.Event()
        self._begun = False
        self._assembly = Assembly(on_started)

    @property
    def served(self) -> Served:
        """Which version answers; waits until that is settled. Raises NodeError."""
        while self._assembly.started is None:
            event = self._next()
            if event is None:
                return self._assembly.whole().served
            self._assembly.take(event)
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
        """The whole answer; reads to the end of it. Raises NodeError."""
        while (event := self._next()) is not None:
            self._assembly.take(event)
        return self._assembly.whole()

    def cancel(self) -> None:
        """Stop decoding; what was read stays read."""
        self._cancelled.set()
        self._call.cancel()

    def __iter__(self) -> Iterator[str]:
        while (event := self._next()) is not None:
            if text := self._assembly.take(event):
                yield text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def _next(self) -> pb.StreamGenerateResponse | None:
        while True:
            try:
                event = next(self._call)
            except StopIteration:
                return None
            except grpc.RpcError as error:
                self._open_again(error)
            else:
                self._begun = True
                return event

    def _open_again(self, failed: grpc.RpcError) -> None:
        """Raises NodeError if what has failed is not to be tried again."""
        pause = None if self._begun else self._attempts.pause(failed)
        if pause is None or self._cancelled.wait(pause):
            raise to_error(failed) from None
        self._call = self._opened(self._attempts.left)
        if self._cancelled.is_set():
            self._call.cancel()

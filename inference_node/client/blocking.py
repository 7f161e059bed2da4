"""The client for threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

import grpc
from grpc_health.v1 import health_pb2_grpc

from inference_node.client.access import NOBODY, Access
from inference_node.client.messages import (
    CHANNEL_OPTIONS,
    DEFAULT_ADDRESS,
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
    to_error,
    to_message,
    to_model_info,
    to_tokenize,
)
from inference_node.client.scores import Echo, TokenLogprob
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.request import ModelInfo, Output, Sampling, Served, Stopping
from inference_node.text import ChatMessage as Message


class Client:
    """Blocking calls to one node; safe to share between threads."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, access: Access = NOBODY) -> None:
        """Connects on the first call. Raises BadConfiguration for what `access` cannot be."""
        credentials = access.channel_credentials(address)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

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
            min_generation=min_generation,
            request_id=request_id,
            priority=priority,
            affinity_key=affinity_key,
        )
        try:
            return to_answer(self._stub.Generate(message, timeout=timeout))
        except grpc.RpcError as error:
            raise to_error(error) from None

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
            min_generation=min_generation,
            request_id=request_id,
            priority=priority,
            affinity_key=affinity_key,
        )
        return Stream(
            self._stub.StreamGenerate(pb.StreamGenerateRequest(request=message), timeout=timeout)
        )

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

    def __init__(self, call: Reading) -> None:
        self._call = call
        self._assembly = Assembly()

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
        try:
            return next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise to_error(error) from None

"""The client's words to messages and back, and statuses to the errors they stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from inference_node import errors
from inference_node.client.scores import Echo, TokenLogprob, to_echo, to_logprobs
from inference_node.errors import InvalidRequest, NodeError
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.request import (
    FinishReason,
    ModelInfo,
    Output,
    PoolStatus,
    Sampling,
    Served,
    Stopping,
    Timings,
    Usage,
)
from inference_node.text import ChatMessage as Message

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 120.0
GREEDY = Sampling()
TO_THE_END = Stopping()
TEXT_ALONE = Output()
Prompt = str | Sequence[Message] | Sequence[int]
"""Text as it is, a conversation for the model's chat template, or token ids."""

_ROLES = {
    "system": pb.CHAT_ROLE_SYSTEM,
    "user": pb.CHAT_ROLE_USER,
    "assistant": pb.CHAT_ROLE_ASSISTANT,
}
_FINISH_REASONS = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_STOP_SEQUENCE: FinishReason.STOP_SEQUENCE,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "lorapool.v1.InferenceService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


READINESS = health_pb2.HealthCheckRequest(service="readiness")


class NodeUnreachable(NodeError):
    """No node answered at the address, or it went away mid-call."""

    reason = "NODE_UNREACHABLE"


class CallFailed(NodeError):
    """The call failed in a way this version has no word for; `details` has the node's own."""

    reason = "CALL_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer and which version gave it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_sequence: str
    usage: Usage
    served: Served
    seed: int
    timings: Timings
    request_id: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, where they were asked for."""
    echo: Echo | None = None


def to_message(
    prompt: Prompt,
    *,
    adapter: str,
    tenant: str,
    sampling: Sampling,
    stopping: Stopping,
    output: Output,
    min_generation: int,
    request_id: str,
    priority: int,
    affinity_key: str,
) -> pb.GenerateRequest:
    """Raises InvalidRequest for what no message can hold; the node checks the rest."""
    try:
        message = pb.GenerateRequest(
            adapter=adapter,
            tenant=tenant,
            sampling=pb.Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                logit_bias=sampling.logit_bias,
                seed=sampling.seed,
            ),
            stopping=pb.Stopping(
                max_new_tokens=stopping.max_new_tokens,
                min_new_tokens=stopping.min_new_tokens,
                stop=stopping.stop,
                stop_token_ids=stopping.stop_token_ids,
                ignore_eos=stopping.ignore_eos,
            ),
            output=pb.Output(
                logprobs=output.logprobs, top_logprobs=output.top_logprobs, echo=output.echo
            ),
            min_generation=min_generation,
            request_id=request_id,
            priority=priority,
            affinity_key=affinity_key,
        )
        _set_prompt(message, prompt)
    except (TypeError, ValueError) as error:
        raise InvalidRequest("request", str(error)) from error
    return message


def to_tokenize(prompt: str | Sequence[Message]) -> pb.TokenizeRequest:
    """Raises InvalidRequest for what no message can hold."""
    if isinstance(prompt, str):
        return pb.TokenizeRequest(prompt=prompt)
    return pb.TokenizeRequest(chat=_chat(prompt))


def _chat(turns: Sequence[Message]) -> pb.Chat:
    for turn in turns:
        if turn.role not in _ROLES:
            raise InvalidRequest("chat.messages", f"unknown role {turn.role!r}")
    return pb.Chat(
        messages=[pb.ChatMessage(role=_ROLES[turn.role], content=turn.content) for turn in turns]
    )


def _set_prompt(message: pb.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        message.prompt = prompt
    elif prompt and isinstance(prompt[0], Message):
        message.chat.CopyFrom(_chat(cast(Sequence[Message], prompt)))
    else:
        message.token_ids.SetInParent()
        message.token_ids.ids.extend(cast(Sequence[int], prompt))


class Assembly:
    """A streamed answer as it comes together."""

    def __init__(self) -> None:
        self.started: Served | None = None
        self.answer: Answer | None = None
        self._request_id = ""
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.echo: Echo | None = None

    def take(self, event: pb.StreamGenerateResponse) -> str:
        """Add one event; the text it brings, empty when it brings none."""
        match event.WhichOneof("event"):
            case "started":
                self.started = _served(event.started.served)
                self._request_id = event.started.request_id
            case "echo":
                self.echo = to_echo(event.echo)
            case "delta":
                self._texts.append(event.delta.text)
                self._token_ids += event.delta.token_ids
                self.logprobs += to_logprobs(event.delta.logprobs)
                return event.delta.text
            case "completed":
                self.answer = self._ended(event.completed)
        return ""

    def whole(self) -> Answer:
        """The answer, once the stream has ended. Raises CallFailed when it was cut short."""
        if self.answer is None:
            raise CallFailed("the stream ended without its last event")
        return self.answer

    def _ended(self, completed: pb.Completed) -> Answer:
        return Answer(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=_FINISH_REASONS[completed.finish_reason],
            stop_sequence=completed.stop_sequence,
            usage=_usage(completed.usage),
            served=_served(completed.served),
            seed=completed.seed,
            timings=_timings(completed.timings),
            request_id=self._request_id,
            logprobs=tuple(self.logprobs),
            echo=self.echo,
        )


def to_answer(message: pb.GenerateResponse) -> Answer:
    return Answer(
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=_FINISH_REASONS[message.finish_reason],
        stop_sequence=message.stop_sequence,
        usage=_usage(message.usage),
        served=_served(message.served),
        seed=message.seed,
        timings=_timings(message.timings),
        request_id=message.request_id,
        logprobs=to_logprobs(message.logprobs),
        echo=to_echo(message.echo) if message.HasField("echo") else None,
    )


def is_serving(message: health_pb2.HealthCheckResponse) -> bool:
    return bool(message.status == health_pb2.HealthCheckResponse.SERVING)


def to_model_info(message: pb.GetModelInfoResponse) -> ModelInfo:
    pool = message.pool
    return ModelInfo(
        name=message.name,
        architecture=message.architecture,
        base_fingerprint=message.base_fingerprint,
        device=message.device,
        kernel=message.kernel,
        base_bytes=message.base_bytes,
        base_bytes_bf16=message.base_bytes_bf16,
        max_context=message.max_context,
        max_rank=message.max_rank,
        groups=tuple(message.groups),
        pool=PoolStatus(
            pool.pages_total, pool.pages_free, pool.page_bytes, pool.resident, pool.leases
        ),
        running=message.running,
        waiting=message.waiting,
        generated_tokens=message.generated_tokens,
    )


def _served(message: pb.Served) -> Served:
    return Served(
        message.tenant, message.adapter, message.version, message.generation, message.digest
    )


def _usage(message: pb.Usage) -> Usage:
    return Usage(message.prompt_tokens, message.completion_tokens, message.cached_tokens)


def _timings(message: pb.Timings) -> Timings:
    return Timings(
        queue=message.queue_seconds,
        adapter_load=message.adapter_load_seconds,
        ttft=message.ttft_seconds,
        decode=message.decode_seconds,
    )


def to_error(error: grpc.RpcError) -> NodeError:
    """The error the node meant, or what is known when no node said anything."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), error
    code, text = error.code(), error.details() or ""
    info, retry = _details(error)
    if info is None:
        return _without_details(code, text)
    metadata = dict(info.metadata)
    hint = metadata.pop("hint", "")
    text = text.removesuffix(f"; {hint}")
    kind = _named_errors().get(info.reason)
    if kind is None:
        return CallFailed(
            text, hint=hint, retry_after=retry, details=metadata | {"reason": info.reason}
        )
    if issubclass(kind, InvalidRequest):
        field = metadata.get("field", "")
        return kind(field, text.removeprefix(f"{field}: "), hint=hint)
    return kind(text, hint=hint, retry_after=retry, details=metadata)


def _details(
    error: grpc.Call | grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    info, retry = None, None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
            if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                found = error_details_pb2.RetryInfo()
                detail.Unpack(found)
                retry = found.retry_delay.ToMilliseconds() / 1000
    return info, retry


def _without_details(code: grpc.StatusCode, text: str) -> NodeError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return NodeUnreachable(
                f"no node answers: {text}", hint="is a node running there? `inference-node serve`"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExpired(text)
        case grpc.StatusCode.CANCELLED:
            return errors.Cancelled(text)
        case _:
            return CallFailed(f"{code.name}: {text}", details={"code": code.name})


def _named_errors() -> dict[str, type[NodeError]]:
    """Every error a node may name, by reason; EngineFailure stands for INTERNAL."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return {
        kind.reason: kind for kind in kinds if issubclass(kind, NodeError) and kind is not NodeError
    }

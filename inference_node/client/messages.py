"""The client's words to messages and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from grpc_health.v1 import health_pb2

from inference_node.client.failures import CallFailed
from inference_node.client.scores import Echo, TokenLogprob, to_echo, to_logprobs
from inference_node.errors import InvalidRequest
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
READINESS = health_pb2.HealthCheckRequest(service="readiness")


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

    def __init__(self, on_started: Callable[[Served], None]) -> None:
        self._on_started = on_started
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
                self._on_started(self.started)
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

"""The engine's words to messages.

They are filled in place: submessages that are passed are copied, and one is made for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as TokenIds

from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.request import (
    Completed,
    Delta,
    Echo,
    FinishReason,
    ModelInfo,
    Served,
    Started,
    Timings,
    TokenScore,
    Usage,
)

Written = Callable[[TokenIds[int]], str]
"""What tokens look like."""

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.STOP_SEQUENCE: pb.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def served_metadata(served: Served) -> tuple[tuple[str, str], ...]:
    """Initial metadata naming the version; every value obeys a grammar that is ASCII."""
    return (
        ("x-lorapool-adapter", served.adapter),
        ("x-lorapool-version", served.version),
        ("x-lorapool-generation", str(served.generation)),
        ("x-lorapool-digest", served.digest),
    )


def started_event(started: Started, request_id: str) -> pb.StreamGenerateResponse:
    event = pb.StreamGenerateResponse()
    event.started.request_id = request_id
    _tell_served(event.started.served, started.served)
    return event


def echo_event(echo: Echo, written: Written) -> pb.StreamGenerateResponse:
    return pb.StreamGenerateResponse(echo=_echo(echo, written))


def delta_event(delta: Delta, written: Written) -> pb.StreamGenerateResponse:
    event = pb.StreamGenerateResponse()
    told = event.delta
    told.text = delta.text
    told.token_ids.extend(delta.token_ids)
    if delta.scores:
        told.logprobs.extend(_logprobs(delta.scores, written))
    return event


def completed_event(completed: Completed) -> pb.StreamGenerateResponse:
    event = pb.StreamGenerateResponse()
    _tell_completed(event.completed, completed)
    return event


def answer(
    completed: Completed, content: Delta, request_id: str, echo: Echo | None, written: Written
) -> pb.GenerateResponse:
    """A whole answer: `content` is every delta joined."""
    made = pb.GenerateResponse(
        text=content.text, token_ids=content.token_ids, request_id=request_id
    )
    _tell_completed(made, completed)
    if content.scores:
        made.logprobs.extend(_logprobs(content.scores, written))
    if echo is not None:
        made.echo.CopyFrom(_echo(echo, written))
    return made


def model_info(info: ModelInfo) -> pb.GetModelInfoResponse:
    return pb.GetModelInfoResponse(
        name=info.name,
        architecture=info.architecture,
        base_fingerprint=info.base_fingerprint,
        device=info.device,
        kernel=info.kernel,
        base_bytes=info.base_bytes,
        base_bytes_bf16=info.base_bytes_bf16,
        max_context=info.max_context,
        max_rank=info.max_rank,
        groups=info.groups,
        pool=pb.PoolStatus(
            pages_total=info.pool.pages_total,
            pages_free=info.pool.pages_free,
            page_bytes=info.pool.page_bytes,
            resident=info.pool.resident,
            leases=info.pool.leases,
        ),
        running=info.running,
        waiting=info.waiting,
        generated_tokens=info.generated_tokens,
    )


def _echo(echo: Echo, written: Written) -> pb.Echo:
    return pb.Echo(
        text=written(echo.token_ids),
        token_ids=echo.token_ids,
        logprobs=_logprobs(echo.scores, written),
    )


def _logprobs(scores: tuple[TokenScore, ...], written: Written) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=score.token_id,
            text=written([score.token_id]),
            logprob=score.logprob,
            rank=score.rank,
            top=[
                pb.TopLogprob(token_id=t.token_id, text=written([t.token_id]), logprob=t.logprob)
                for t in score.top
            ],
        )
        for score in scores
    ]


def _tell_completed(told: pb.Completed | pb.GenerateResponse, completed: Completed) -> None:
    told.finish_reason = _FINISH_REASONS[completed.finish_reason]
    told.stop_sequence = completed.stop_sequence
    told.seed = completed.seed
    _tell_usage(told.usage, completed.usage)
    _tell_served(told.served, completed.served)
    _tell_timings(told.timings, completed.timings)


def _tell_served(told: pb.Served, served: Served) -> None:
    told.tenant = served.tenant
    told.adapter = served.adapter
    told.version = served.version
    told.generation = served.generation
    told.digest = served.digest


def _tell_usage(told: pb.Usage, usage: Usage) -> None:
    told.prompt_tokens = usage.prompt_tokens
    told.completion_tokens = usage.completion_tokens
    told.cached_tokens = usage.cached_tokens


def _tell_timings(told: pb.Timings, timings: Timings) -> None:
    told.queue_seconds = timings.queue
    told.adapter_load_seconds = timings.adapter_load
    told.ttft_seconds = timings.ttft
    told.decode_seconds = timings.decode

"""The engine's words to messages."""

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
    return pb.StreamGenerateResponse(
        started=pb.Started(served=_served(started.served), request_id=request_id)
    )


def echo_event(echo: Echo, written: Written) -> pb.StreamGenerateResponse:
    return pb.StreamGenerateResponse(echo=_echo(echo, written))


def delta_event(delta: Delta, written: Written) -> pb.StreamGenerateResponse:
    # Filled in place: one is made for every token, and submessages that are passed are copied.
    event = pb.StreamGenerateResponse()
    event.delta.text = delta.text
    event.delta.token_ids.extend(delta.token_ids)
    if delta.scores:
        event.delta.logprobs.extend(_logprobs(delta.scores, written))
    return event


def completed_event(completed: Completed) -> pb.StreamGenerateResponse:
    return pb.StreamGenerateResponse(
        completed=pb.Completed(
            finish_reason=_FINISH_REASONS[completed.finish_reason],
            stop_sequence=completed.stop_sequence,
            usage=_usage(completed.usage),
            served=_served(completed.served),
            seed=completed.seed,
            timings=_timings(completed.timings),
        )
    )


def answer(
    completed: Completed, content: Delta, request_id: str, echo: Echo | None, written: Written
) -> pb.GenerateResponse:
    """A whole answer: `content` is every delta joined."""
    made = pb.GenerateResponse(
        text=content.text,
        token_ids=content.token_ids,
        finish_reason=_FINISH_REASONS[completed.finish_reason],
        stop_sequence=completed.stop_sequence,
        usage=_usage(completed.usage),
        served=_served(completed.served),
        seed=completed.seed,
        timings=_timings(completed.timings),
        request_id=request_id,
    )
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


def _served(served: Served) -> pb.Served:
    return pb.Served(
        tenant=served.tenant,
        adapter=served.adapter,
        version=served.version,
        generation=served.generation,
        digest=served.digest,
    )


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        queue_seconds=timings.queue,
        adapter_load_seconds=timings.adapter_load,
        ttft_seconds=timings.ttft,
        decode_seconds=timings.decode,
    )

"""How likely the model held its tokens, as callers read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inference_node.pb.lorapool.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have come."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of the model's own probabilities, before anything in Sampling."""

    token_id: int
    text: str
    logprob: float | None
    """None for a prompt's first token, which nothing predicts."""
    rank: int
    """1 for the likeliest token; 0 where there is no `logprob`."""
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt as the model read it."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


def to_logprobs(messages: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            message.token_id,
            message.text,
            message.logprob if message.HasField("logprob") else None,
            message.rank,
            tuple(TopLogprob(each.token_id, each.text, each.logprob) for each in message.top),
        )
        for message in messages
    )


def to_echo(message: pb.Echo) -> Echo:
    return Echo(message.text, tuple(message.token_ids), to_logprobs(message.logprobs))

"""The engine's words: what is asked, and what is answered. No torch, no protobuf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from inference_node.errors import NodeError
from inference_node.tracing import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn, in this order.

    `logit_bias`, repetition, frequency and presence penalty change the model's logits; then
    temperature 0 takes the likeliest token, and any other draws one of those that top_k, top_p and
    min_p leave.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least so likely, as a share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Tokens of prompt and answer: a positive logit is divided by it, a negative one multiplied."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token of the answer."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit once for every time it is in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    seed: int | None = None
    """Equal seeds give equal tokens whatever else is in the batch; None draws one."""

    @property
    def penalises(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a generation ends."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    """Nothing but `max_new_tokens` and the context ends the answer before so many tokens."""
    stop: tuple[str, ...] = ()
    """Text that ends the answer; it is not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What an answer brings beside its tokens."""

    logprobs: bool = False
    """How likely the model held each token, before anything in Sampling."""
    top_logprobs: int = 0
    """With `logprobs`: also the so many likeliest tokens at each place."""
    echo: bool = False
    """The prompt too; with `logprobs`, scored like the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One accepted request. Times are seconds of the engine's monotonic clock."""

    request_id: str
    tenant: str
    adapter: str
    """`name`, `name@label` or `name@sha256:<digest>`; empty for the base model."""
    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    stopping: Stopping = field(default_factory=Stopping)
    output: Output = field(default_factory=Output)
    min_generation: int = 0
    deadline: float | None = None
    priority: int = 0
    """Higher goes first; requests of one priority share fairly."""
    affinity_key: str = ""
    """During a split of the adapter, equal keys get the same version; empty gets the active one."""
    trace: Trace | None = field(default=None, compare=False)
    """What the work for it is told as a part of."""


@dataclass(frozen=True, slots=True)
class Served:
    """Which version answered. Empty adapter and digest, generation 0: the base model."""

    tenant: str
    adapter: str
    version: str
    generation: int
    digest: str


class FinishReason(Enum):
    """Why a generation ended well. Cancellation and deadlines are errors instead."""

    STOP = "stop"
    """The model ended its answer."""
    STOP_SEQUENCE = "stop_sequence"
    """One of the request's stop strings or token ids came up."""
    LENGTH = "length"
    """max_new_tokens, or the end of the context."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt: tokens whose keys and values were in the cache from an earlier request."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from acceptance by the engine."""

    queue: float
    """Until the request's first step, adapter loading included."""
    adapter_load: float
    """Part of `queue` spent resolving and loading the adapter."""
    ttft: float
    """Until the first token."""
    decode: float
    """From the first token to the last."""


@dataclass(frozen=True, slots=True)
class Started:
    """The version is pinned and resident; tokens follow."""

    served: Served


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have stood at some place."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely the model held a token: natural logarithms of its own probabilities."""

    token_id: int
    logprob: float | None
    """None for a prompt's first token, which nothing predicts."""
    rank: int
    """1 for the likeliest token; 0 where there is no `logprob`."""
    top: tuple[Candidate, ...] = ()
    """The likeliest tokens, best first, as many as were asked for."""


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt, for requests that ask; after Started, before the first Delta."""

    token_ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    """One for each token where logprobs are asked for."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Newly decoded text, whole characters only, with the tokens decoded since the last delta."""

    text: str
    token_ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    """One for each token where logprobs are asked for."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The last event of a request that ended well."""

    served: Served
    finish_reason: FinishReason
    stop_sequence: str
    usage: Usage
    timings: Timings
    seed: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that did not."""

    error: NodeError
    served: Served | None


Event = Started | Echo | Delta | Completed | Failed
OnEvent = Callable[[Event], None]
"""Called on the engine thread, in order; must not block. The last is Completed or Failed."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Pages of the adapter pool, summed over module groups."""

    pages_total: int
    pages_free: int
    page_bytes: int
    """Bytes of one page in every group together."""
    resident: int
    leases: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a node serves."""

    name: str
    architecture: str
    base_fingerprint: str
    device: str
    kernel: str
    """Which 4-bit linear implementation runs, and the compute dtype."""
    base_bytes: int
    """Bytes of the base as held: 4-bit linears, the rest in the compute dtype."""
    base_bytes_bf16: int
    max_context: int
    max_rank: int
    groups: tuple[str, ...]
    """Module groups of the pool, such as `q_proj+k_proj+v_proj`."""
    pool: PoolStatus
    running: int
    waiting: int
    generated_tokens: int = 0
    """Since the node started."""

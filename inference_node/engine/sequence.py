"""One request's state: what it has, what it waits for, and how it ends. Pure Python."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from inference_node.adapters.versions import Entry, Resident
from inference_node.request import (
    FinishReason,
    OnEvent,
    Request,
    Served,
    Timings,
    TokenScore,
    Usage,
)
from inference_node.text import Detokenizer, StopMatcher


class Phase(Enum):
    """Where a request is. Every path ends in DONE, and every DONE was answered."""

    RESOLVING = "resolving"
    """Its reference is being looked up."""
    LOADING = "loading"
    """Its version is on the way to the device."""
    WAITING = "waiting"
    """It holds its lease and waits for KV blocks or a row."""
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's side of one accepted request."""

    request: Request
    on_event: OnEvent
    accepted_at: float
    order: int
    """Rises with acceptance: first come, first served, also after preemption."""
    seed: int
    detokenizer: Detokenizer
    stops: StopMatcher
    eos: frozenset[int] = frozenset()
    """Tokens with which the model ends its text."""
    room: int = sys.maxsize
    """Tokens that a context may have."""
    phase: Phase = Phase.RESOLVING
    entry: Entry | None = None
    """The pinned version; None for the base, and until resolved."""
    lease: Resident | None = None
    tokens: list[int] = field(default_factory=list)
    """Prompt and answer so far."""
    unread: int = 0
    """Tokens behind `tokens` that steps on their way draw: the host does not know them yet."""
    cached: int = 0
    """Leading tokens whose keys and values are in the cache, or will be after the steps on their
    way."""
    block_table: list[int] = field(default_factory=list)
    block_names: list[bytes] = field(default_factory=list)
    """What its leading full blocks hold, as `prefix` names it."""
    whole_prompt: bool = False
    """Every prompt token is to pass through the model, also where the cache has it."""
    named: int = 0
    """Leading blocks of the table whose names others may find."""
    reused: int = 0
    """Leading prompt tokens that were in the cache when it first got a row."""
    flow: tuple[int, str, str] = (0, "", "")
    """Priority, tenant and adapter: whom it shares a line with. Set when it is ready."""
    in_line: bool = False
    """Its prompt is not read to the end: it has a claim on the step's prompt tokens."""
    paid: int = 0
    """Leading prompt tokens that its tenant was charged for."""
    admitted_at: float | None = None
    """Its tenant's token counter when it first got a row."""
    rank: int = 0
    """Its priority, with the age of its class when it got its row."""
    place: tuple[int, float, int] = (0, 0.0, 0)
    """Its place among those that run: when room is short, the last gives way."""
    sampler: Any = None
    """What the sampler remembers of this request."""
    ready_at: float = 0.0
    first_step_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    unsent: list[int] = field(default_factory=list)
    """Tokens whose text has not been handed out."""
    unsent_scores: list[TokenScore] = field(default_factory=list)
    """Of those tokens, where they are asked for."""
    prompt_scores: list[TokenScore] = field(default_factory=list)
    """Of the leading tokens of the prompt, where they are asked for."""
    plain: bool = field(init=False)
    """Each next token is the likeliest by the model's own logits."""
    early: bool = field(init=False)
    """Each next token can be drawn before the host knows the one before."""

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.prompt)
        sampling = self.request.sampling
        edits = sampling.penalises or sampling.logit_bias or self.too_early
        self.plain = sampling.temperature == 0.0 and not edits
        self.early = not edits and not self.request.output.logprobs

    @property
    def pending(self) -> int:
        """Tokens that must pass through the model before the next one can be drawn."""
        return len(self.tokens) + self.unread - self.cached

    @property
    def ends(self) -> bool:
        """Whether what is on its way is the last token, whichever it is."""
        most = min(len(self.request.prompt) + self.request.stopping.max_new_tokens, self.room)
        return len(self.tokens) + self.unread >= most

    @property
    def produced(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """Tokens that may still pass through the model for this request."""
        drawn = self.produced + self.unread
        return self.pending + self.request.stopping.max_new_tokens - drawn

    @property
    def too_early(self) -> frozenset[int]:
        """Tokens that would end the answer and may not come yet."""
        stopping = self.request.stopping
        if self.produced >= stopping.min_new_tokens:
            return frozenset()
        ending = frozenset(stopping.stop_token_ids)
        return ending if stopping.ignore_eos else ending | self.eos

    @property
    def scores_prompt(self) -> bool:
        """Its prompt is not scored to the end: all of it must pass through the model."""
        output = self.request.output
        missing = len(self.prompt_scores) < len(self.request.prompt)
        return output.echo and output.logprobs and missing

    @property
    def served(self) -> Served:
        if self.entry is None:
            return Served(self.request.tenant, "", "", 0, "")
        return self.entry.served

    @property
    def usage(self) -> Usage:
        return Usage(len(self.request.prompt), self.produced, self.reused)

    @property
    def timings(self) -> Timings:
        return Timings(
            queue=max(0.0, self.first_step_at - self.accepted_at),
            adapter_load=max(0.0, self.ready_at - self.accepted_at),
            ttft=max(0.0, self.first_token_at - self.accepted_at),
            decode=max(0.0, self.last_token_at - self.first_token_at),
        )

    def ended_by(self, token: int) -> FinishReason | None:
        """Why the answer ends with `token`, already appended."""
        stopping, produced = self.request.stopping, self.produced
        if produced > stopping.min_new_tokens:
            if token in stopping.stop_token_ids:
                return FinishReason.STOP_SEQUENCE
            if token in self.eos and not stopping.ignore_eos:
                return FinishReason.STOP
        if produced >= stopping.max_new_tokens or len(self.tokens) >= self.room:
            return FinishReason.LENGTH
        return None

"""How a request to generate ended, as counts, logs and audits tell it. No torch, no protobuf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from inference_node.errors import (
    AdapterCorrupt,
    BaseModelUnavailable,
    Cancelled,
    DeadlineExpired,
    EngineFailure,
    LoadFailed,
    ModelFailure,
    NodeError,
    StoreDown,
)
from inference_node.request import Served, Timings


class Outcome(Enum):
    """Whose doing the end was."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """The caller went away."""
    EXPIRED = "expired"
    """The caller's deadline passed, or the node's own limit."""
    REFUSED = "refused"
    """The request cannot be had so, or not now: nothing is wrong with the node."""
    FAILED = "failed"
    """Something is wrong with the node, its store or the adapter."""


_FAILURES = (
    AdapterCorrupt,
    BaseModelUnavailable,
    EngineFailure,
    LoadFailed,
    ModelFailure,
    StoreDown,
)


def outcome_of(error: BaseException) -> Outcome:
    """What an error makes of its request; one that nobody foresaw is the node's."""
    match error:
        case Cancelled():
            return Outcome.CANCELLED
        case DeadlineExpired():
            return Outcome.EXPIRED
        case NodeError() if type(error) is not NodeError and not isinstance(error, _FAILURES):
            return Outcome.REFUSED
        case _:
            return Outcome.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One request, over. What a caller wrote is here only where it obeys its grammar."""

    method: str
    request_id: str
    """Empty when the request was refused before it had one."""
    caller: str
    """Empty where the node asks for no credentials."""
    tenant: str
    adapter: str
    """As it was asked for; empty for the base."""
    served: Served | None
    """None when it ended before its version was known."""
    outcome: Outcome
    reason: str
    """Of an error, or of the end of the text: STOP, STOP_SEQUENCE or LENGTH."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt: not computed, for the cache had them. Known of completed requests alone."""
    generated_tokens: int
    """Handed to the caller."""
    seconds: float
    """From the call to its end."""
    first_token: float | None
    """Seconds from the call to the first token; None when none came."""
    timings: Timings | None
    """The engine's, of completed requests."""


OnEnded = Callable[[Ended], None]
"""Called on the event loop; must not block."""

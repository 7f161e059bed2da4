"""How requests of each version of an adapter went: counted on nodes, summed, and judged.

A node that restarts is another, and one that forgot a version counts it from zero again. So whoever
watches for a while takes what each node adds from look to look, and loses nothing when nodes come
and go: what was heard of a node stays in the sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields

from adapter_store.errors import InvalidName
from adapter_store.names import check_digest


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Requests that one version served, since the node started or over a watch."""

    completed: int = 0
    failed: int = 0
    """By the node, its store or the adapter; what callers cancelled or may not have is not here."""
    late: int = 0
    """Deadlines that passed."""
    tokens: int = 0
    """Of completed requests."""
    seconds: float = 0.0
    """Spent on those tokens, from arrival to end."""

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.late

    @property
    def token_seconds(self) -> float:
        """What a token took; nan without tokens."""
        return self.seconds / self.tokens if self.tokens else math.nan

    @property
    def answer_tokens(self) -> float:
        """How long an answer was; nan without answers."""
        return self.tokens / self.completed if self.completed else math.nan

    # Field by field: `astuple` copies deeply, which at the end of every request is a tenth of it.
    def __add__(self, other: ArmCount) -> ArmCount:
        return ArmCount(
            self.completed + other.completed,
            self.failed + other.failed,
            self.late + other.late,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: ArmCount) -> ArmCount:
        return ArmCount(
            self.completed - other.completed,
            self.failed - other.failed,
            self.late - other.late,
            self.tokens - other.tokens,
            self.seconds - other.seconds,
        )


Arms = Mapping[str, ArmCount]
"""By digest."""
_NOTHING = ArmCount()


def encode_arms(arms: Arms) -> str:
    return json.dumps({digest: astuple(count) for digest, count in sorted(arms.items())})


def decode_arms(text: str) -> dict[str, ArmCount]:
    """Empty for what no node would have told."""
    try:
        told = json.loads(text).items()
        arms = {check_digest(digest): ArmCount(*count) for digest, count in told}
        if not all(len(count) == len(fields(ArmCount)) for _, count in told):
            return {}
    except (InvalidName, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return arms if all(map(_is_count, arms.values())) else {}


@dataclass(slots=True)
class Watch:
    """What the versions of one adapter did over a fleet since the first look."""

    _last: dict[str, Arms] = field(default_factory=dict)
    """By node."""
    _added: dict[str, ArmCount] = field(default_factory=dict)
    """By digest."""
    _looked: bool = False

    def take(self, told: Mapping[str, Arms]) -> None:
        """What each node says now; a node that was not there at the first look counts from zero."""
        for node, arms in told.items():
            last = self._last.get(node, {})
            if self._looked:
                for digest, count in arms.items():
                    added = _since(last.get(digest, _NOTHING), count)
                    self._added[digest] = self.of(digest) + added
            self._last[node] = {**last, **arms}
        self._looked = True

    def of(self, digest: str) -> ArmCount:
        return self._added.get(digest, _NOTHING)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a canary may cost."""

    max_failed: float = 0.02
    """Share of its requests that fail or are late, beyond the share of the active version's."""
    max_slower: float = 1.5
    """Seconds a token over the active version's."""
    max_longer: float = 2.0
    """Tokens an answer over the active version's."""
    min_answers: int = 50
    """Requests of each that ended, before their means are compared."""


def breaches(active: ArmCount, canary: ArmCount, bounds: Bounds) -> list[str]:
    """What the canary breaks, in words; nothing while too little is known.

    Failures count at once, as if `min_answers` had ended: a canary that answers nobody is not
    given fifty callers first.
    """
    found = []
    bad = canary.failed + canary.late
    usual = (active.failed + active.late) / active.ended if active.ended else 0.0
    allowed = (bounds.max_failed + usual) * max(canary.ended, bounds.min_answers)
    if bad > allowed:
        found.append(
            f"{bad} of {canary.ended} requests failed, {usual:.1%} of the active version's; "
            f"{bounds.max_failed:.1%} more are allowed"
        )
    if enough(active, canary, bounds):
        for what, limit, ours, theirs in (
            ("seconds a token", bounds.max_slower, canary.token_seconds, active.token_seconds),
            ("tokens an answer", bounds.max_longer, canary.answer_tokens, active.answer_tokens),
        ):
            # Of nan no comparison is true.
            if ours > limit * theirs:
                found.append(f"{ours:.3g} {what} beside {theirs:.3g}, {limit:g} times are allowed")
    return found


def enough(active: ArmCount, canary: ArmCount, bounds: Bounds) -> bool:
    """Whether so many requests of both have ended that they can be compared."""
    return min(active.ended, canary.ended) >= bounds.min_answers


def _since(last: ArmCount, now: ArmCount) -> ArmCount:
    """What was added; all of it where fewer have ended than before, for then it began anew."""
    return now if now.ended < last.ended else now - last


def _is_count(count: ArmCount) -> bool:
    values = {part.name: getattr(count, part.name) for part in fields(count)}
    seconds = values.pop("seconds")
    return (
        all(type(value) is int and value >= 0 for value in values.values())
        and type(seconds) in (int, float)
        and math.isfinite(seconds)
        and seconds >= 0
    )

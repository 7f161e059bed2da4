"""What publishers and garbage collectors tell each other: intents and plans.

A publisher writes its intent before it looks for chunks to reuse; a collector writes its plan
before it looks again at what is needed. In a consistent store at least one of them sees the
other, so no chunk is deleted that a commit is about to name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from adapter_store.errors import IntegrityError
from adapter_store.record import canonical_json

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Intent:
    """One attempt to commit: it can land in `slot` of `adapter`'s log and nowhere else."""

    adapter: str
    slot: int
    digests: tuple[str, ...]
    """sha256 of every chunk the commit would name."""

    def encode(self) -> bytes:
        return canonical_json(asdict(self))


@dataclass(frozen=True, slots=True)
class Plan:
    """Chunk keys that may gain no new reference."""

    keys: tuple[str, ...]

    def encode(self) -> bytes:
        return canonical_json(asdict(self))


def decode_intent(body: bytes) -> Intent:
    """Raises IntegrityError."""
    return _decode(
        body,
        "an intent",
        lambda value: Intent(str(value["adapter"]), int(value["slot"]), tuple(value["digests"])),
    )


def decode_plan(body: bytes) -> Plan:
    """Raises IntegrityError."""
    return _decode(body, "a collection plan", lambda value: Plan(tuple(value["keys"])))


def _decode(body: bytes, what: str, build: Callable[[Mapping[str, Any]], _T]) -> _T:
    try:
        return build(json.loads(body))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"not {what}: {error}") from error

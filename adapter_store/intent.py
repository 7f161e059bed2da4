"""What publishers and garbage collectors tell each other: intents, pins and plans.

A publisher writes its intent before it looks for chunks to reuse; a collector writes its plan
before it looks again at what is needed. In a consistent store at least one of them sees the
other, so no chunk is deleted that a commit is about to name. A pin is written before its maker
looks at the plans, for the same reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adapter_store.errors import IntegrityError, InvalidName
from adapter_store.names import MAX_GENERATION, check_digest, check_id
from adapter_store.record import canonical_json


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


@dataclass(frozen=True, slots=True)
class Pin:
    """A version that is kept whatever its age."""

    adapter: str
    label: str
    vdig: str
    gen: int
    """A record that named it when it was pinned."""
    digests: tuple[str, ...]
    """sha256 of every chunk: they stay under whatever key a record names them by."""

    def encode(self) -> bytes:
        return canonical_json(asdict(self))


def decode_intent(body: bytes) -> Intent:
    """Raises IntegrityError on anything but a canonical intent."""
    value = _fields(body, "an intent", {"adapter": str, "digests": list, "slot": int})
    intent = Intent(value["adapter"], value["slot"], tuple(value["digests"]))
    try:
        check_id("adapter", intent.adapter)
        for digest in intent.digests:
            check_digest(digest)
    except InvalidName as error:
        raise IntegrityError(f"not an intent: {error}") from error
    if not 1 <= intent.slot <= MAX_GENERATION:
        raise IntegrityError(f"not an intent: slot {intent.slot} is in no log")
    return intent


def decode_plan(body: bytes) -> Plan:
    """Raises IntegrityError on anything but a canonical collection plan."""
    return Plan(tuple(_fields(body, "a collection plan", {"keys": list})["keys"]))


def decode_pin(body: bytes) -> Pin:
    """Raises IntegrityError on anything but a canonical pin."""
    types = {"adapter": str, "digests": list, "gen": int, "label": str, "vdig": str}
    value = _fields(body, "a pin", types)
    try:
        check_id("adapter", value["adapter"])
        check_id("version", value["label"])
        for digest in (value["vdig"], *value["digests"]):
            check_digest(digest)
    except InvalidName as error:
        raise IntegrityError(f"not a pin: {error}") from error
    return Pin(
        value["adapter"], value["label"], value["vdig"], value["gen"], tuple(value["digests"])
    )


def _fields(body: bytes, what: str, types: Mapping[str, type]) -> dict[str, Any]:
    """A canonical object with exactly these fields; every list holds texts."""
    try:
        value = json.loads(body)
        canonical = canonical_json(value) == body
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"not {what}: {error}") from error
    if not canonical or not isinstance(value, dict):
        raise IntegrityError(f"not {what} in canonical form")
    if {name: type(field) for name, field in value.items()} != types:
        raise IntegrityError(f"not {what}: a field is missing, unknown or of the wrong type")
    lists = (field for field in value.values() if isinstance(field, list))
    if not all(type(text) is str for texts in lists for text in texts):
        raise IntegrityError(f"not {what}: a list holds something else than texts")
    return value

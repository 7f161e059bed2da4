"""What a node tells of itself and of the adapters it has, as values and in its JSON encoding.

Told through Redis under a lease (registry.py), read by people, by `activate` and by canaries, and
believed for nothing that a request's answer depends on. Anyone may write to Redis: what does not
decode is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

from adapter_store.errors import InvalidName
from adapter_store.names import MAX_GENERATION, check_digest, check_id

MAX_TEXT = 256
"""Characters of an address, a model's name or a reason."""

Name = tuple[str, str]
"""Tenant and adapter."""


class State(Enum):
    """Whether a node takes requests."""

    READY = "ready"
    DRAINING = "draining"


class Standing(Enum):
    """How far a version has come on a node."""

    DEVICE = "device"
    HOST = "host"
    """Fetched, verified and laid out: a copy away from the device."""
    COMING = "coming"
    FAILED = "failed"

    @property
    def ready(self) -> bool:
        """Whether the node can serve it without asking the store."""
        return self in (Standing.DEVICE, Standing.HOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCard:
    """One node: where it is, what it serves on, and how busy it is."""

    id: str
    """Drawn at start: a node that restarts is another."""
    address: str
    """Where clients reach it."""
    base: str
    """Fingerprint of the base model."""
    model: str
    state: State
    adapters: int
    """Names it serves."""
    residency: str
    """sha256 over all its holdings: while it stays, none of them has changed."""
    resident: int
    """Versions on the device."""
    running: int
    waiting: int
    pages_free: int
    pages_total: int
    generated_tokens: int
    completed: int
    failed: int
    """The last three since it started."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One version on a node."""

    version: str
    """The label it was last asked for or served as."""
    standing: Standing
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node has of one adapter."""

    tenant: str
    adapter: str
    generation: int
    """What the bare name serves there; 0 while it serves nothing."""
    digest: str
    """Of the version that the bare name serves; empty while it serves nothing."""
    copies: Mapping[str, Copy]
    """By digest: what is served, what is staged, and older ones that are still kept."""

    @property
    def name(self) -> Name:
        return self.tenant, self.adapter

    def can_serve(self, digest: str) -> bool:
        copy = self.copies.get(digest)
        return copy is not None and copy.standing.ready


def residency_digest(holdings: Iterable[Holding]) -> str:
    """Equal for equal holdings, in whatever order."""
    lines = sorted(f"{h.tenant}/{h.adapter} {encode_holding(h)}" for h in holdings)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def encode_card(card: NodeCard) -> str:
    return _compact({**asdict(card), "state": card.state.value})


def decode_card(text: str) -> NodeCard | None:
    """None for what no node would have told."""
    try:
        value = json.loads(text)
        card = NodeCard(**{**value, "state": State(value["state"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    told = [(part.type, getattr(card, part.name)) for part in fields(card) if part.name != "state"]
    return card if all(_is_plain(value, str(kind)) for kind, value in told) else None


def encode_holding(holding: Holding) -> str:
    """Without its name, which is where it is kept under."""
    copies = {
        digest: [copy.version, copy.standing.value, *([copy.reason] if copy.reason else [])]
        for digest, copy in holding.copies.items()
    }
    return _compact({"generation": holding.generation, "digest": holding.digest, "copies": copies})


def decode_holding(name: Name, text: str) -> Holding | None:
    """None for what no node would have told."""
    try:
        value = json.loads(text)
        copies = {
            check_digest(digest): Copy(check_id("version", label), Standing(standing), *reason)
            for digest, (label, standing, *reason) in value["copies"].items()
        }
        generation, digest = value["generation"], value["digest"]
        check_id("tenant", name[0])
        check_id("adapter", name[1])
        if digest:
            check_digest(digest)
    except (InvalidName, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    reasons_are_plain = all(_is_plain(copy.reason, "str") for copy in copies.values())
    if not reasons_are_plain or not _is_plain(generation, "int") or generation > MAX_GENERATION:
        return None
    return Holding(name[0], name[1], generation, digest, copies)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _is_plain(value: object, kind: str) -> bool:
    """An `int` that is not negative, or a `str` that is fit for a terminal."""
    if kind == "int":
        return type(value) is int and value >= 0
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()

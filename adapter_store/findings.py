"""What an examination of the store can find, by name and by how bad it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Severity(Enum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Kind(Enum):
    """What is wrong, by name."""

    CHUNK_MISSING = "chunk-missing"
    CHUNK_SIZE = "chunk-size"
    CHUNK_DAMAGED = "chunk-damaged"
    RECORD_DAMAGED = "record-damaged"
    RECORD_MISPLACED = "record-misplaced"
    RECORD_UNTRUSTED = "record-untrusted"
    LOG_GAP = "log-gap"
    CHAIN_BROKEN = "chain-broken"
    BASE_MISSING = "base-missing"
    BASE_DAMAGED = "base-damaged"
    PIN_DAMAGED = "pin-damaged"
    INTENT_DAMAGED = "intent-damaged"
    INTENT_STALE = "intent-stale"
    PLAN_DAMAGED = "plan-damaged"
    PLAN_STALE = "plan-stale"
    STRAY = "stray"
    ORPHAN = "orphan"

    @property
    def severity(self) -> Severity:
        return _SEVERITIES.get(self, Severity.ERROR)


_SEVERITIES = {
    Kind.INTENT_STALE: Severity.WARNING,
    Kind.PLAN_STALE: Severity.WARNING,
    Kind.STRAY: Severity.WARNING,
    Kind.ORPHAN: Severity.INFO,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind
    key: str
    """The object it is about, or where one should be."""
    message: str

    @property
    def severity(self) -> Severity:
        return self.kind.severity


@dataclass(slots=True)
class Summary:
    """What was looked at; complete once every finding was taken."""

    adapters: int = 0
    records: int = 0
    live_chunks: int = 0
    """Of what is served, staged or split; each was asked for."""
    bytes_read: int = 0
    """Of chunks that were read in full."""
    chunks: int = 0
    pins: int = 0
    found: dict[Severity, int] = field(default_factory=lambda: dict.fromkeys(Severity, 0))

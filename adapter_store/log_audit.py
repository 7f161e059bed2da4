"""One adapter's log, slot by slot from the newest down, and the chunks of what it serves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from adapter_store import layout
from adapter_store.draft import chunks_of
from adapter_store.errors import IntegrityError, NotFound, Untrusted
from adapter_store.findings import Finding, Kind
from adapter_store.log import Known, Log, check_plan
from adapter_store.objects import ObjectStore
from adapter_store.record import Chunk, Record, decode_record
from adapter_store.retention import LogEntry
from adapter_store.signing import Verifier


@dataclass(slots=True)
class LogSeen:
    """What was found out about one log."""

    findings: list[Finding] = field(default_factory=list)
    named: set[int] = field(default_factory=set)
    """`short` of every key that a record names."""
    records: int = 0
    live_chunks: int = 0
    bytes_read: int = 0

    @property
    def lost_chunks(self) -> bool:
        return any(finding.kind is Kind.CHUNK_MISSING for finding in self.findings)

    def add(self, kind: Kind, key: str, message: str) -> None:
        self.findings.append(Finding(kind, key, message))


class LogAudit:
    """Examines logs; safe for several threads."""

    def __init__(
        self, store: ObjectStore, tenant: str, *, deep: bool, verifier: Verifier | None
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._deep = deep
        self._log = Log(store, verifier, refused=lambda *_: None) if verifier else None

    def examine(self, log: list[LogEntry], *, bases: set[str]) -> LogSeen:
        """`log` is newest first; `bases` are the fingerprints whose cards are in order."""
        seen = LogSeen()
        live: Record | None = None
        expected, parent = log[0].gen, ""
        for entry in log:
            if entry.gen != expected:
                self._gap(seen, entry, expected)
                parent = ""
            body = self._body(seen, entry)
            if body is not None:
                if parent and hashlib.sha256(body).hexdigest() != parent:
                    above = f"generation {entry.gen + 1} of {entry.adapter}"
                    seen.add(Kind.CHAIN_BROKEN, entry.key, f"{above} has another parent")
                record = self._record(seen, entry, body)
                parent = record.parent if record else ""
                live = live or record
            expected = entry.gen - 1
        if expected > 0:
            key = layout.log_key(self._tenant, log[0].adapter, expected)
            seen.add(Kind.LOG_GAP, key, f"generations 1 to {expected} of {log[0].adapter} are gone")
        self._live(seen, self._served(seen, log[0], live), bases)
        return seen

    def _gap(self, seen: LogSeen, entry: LogEntry, expected: int) -> None:
        key = layout.log_key(self._tenant, entry.adapter, expected)
        lost = f"{entry.gen + 1} to {expected}" if entry.gen + 1 < expected else f"{expected}"
        seen.add(Kind.LOG_GAP, key, f"generation {lost} of {entry.adapter} is gone")

    def _body(self, seen: LogSeen, entry: LogEntry) -> bytes | None:
        try:
            return self._store.get(entry.key)
        except NotFound:
            seen.add(Kind.LOG_GAP, entry.key, "was listed and is gone")
        except IntegrityError as error:
            seen.add(Kind.RECORD_DAMAGED, entry.key, str(error))
        return None

    def _record(self, seen: LogSeen, entry: LogEntry, body: bytes) -> Record | None:
        seen.records += 1
        try:
            record = decode_record(body)
            for version in record.contents():
                check_plan(self._tenant, version)
        except IntegrityError as error:
            seen.add(Kind.RECORD_DAMAGED, entry.key, str(error))
            return None
        seen.named.update(short(chunk.key) for chunk in chunks_of(record.contents()))
        if (record.tenant, record.adapter, record.gen) != (self._tenant, entry.adapter, entry.gen):
            place = f"generation {record.gen} of {record.adapter}, tenant {record.tenant}"
            seen.add(Kind.RECORD_MISPLACED, entry.key, f"it is the record of {place}")
            return None
        return record

    def _served(self, seen: LogSeen, newest: LogEntry, live: Record | None) -> Record | None:
        """What nodes go by: the newest record in order, or the newest trusted one."""
        if self._log is None:
            return live
        try:
            known: Known = self._log.start(self._tenant, newest.adapter)
        except (Untrusted, NotFound, IntegrityError) as error:
            seen.add(Kind.RECORD_UNTRUSTED, newest.key, str(error))
            return None
        if known.refused is not None:
            seen.add(Kind.RECORD_UNTRUSTED, newest.key, str(known.refused))
        return known.record

    def _live(self, seen: LogSeen, record: Record | None, bases: set[str]) -> None:
        if record is None:
            return
        asked: set[str] = set()
        for version in record.contents():
            what = f"{record.adapter}@{version.label}, generation {record.gen}"
            if version.base not in bases:
                key = layout.base_card_key(version.base)
                seen.add(Kind.BASE_MISSING, key, f"{what} is for a base model without a card")
            for chunk in chunks_of([version]):
                if chunk.key not in asked:
                    asked.add(chunk.key)
                    self._chunk(seen, chunk, what)
        seen.live_chunks += len(asked)

    def _chunk(self, seen: LogSeen, chunk: Chunk, what: str) -> None:
        try:
            head = self._store.head(chunk.key)
            if head.size != chunk.length:
                message = f"{what}: {head.size} bytes and not {chunk.length}"
                seen.add(Kind.CHUNK_SIZE, chunk.key, message)
                return
            sha256 = None if self._deep else head.sha256
            if sha256 is None:
                sha256 = hashlib.sha256(self._store.get(chunk.key)).hexdigest()
                seen.bytes_read += head.size
        except NotFound:
            seen.add(Kind.CHUNK_MISSING, chunk.key, f"{what}: a chunk is gone")
        else:
            if sha256 != chunk.sha256:
                seen.add(Kind.CHUNK_DAMAGED, chunk.key, f"{what}: other bytes than were sent")


def short(key: str) -> int:
    """Eight bytes that stand for a key where very many are remembered."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())

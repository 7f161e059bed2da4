"""Is everything that should be in the store there, whole and in its place? Reads; repairs nothing.

error     something served or pinned is missing or damaged, a log is broken, or something damaged
          keeps publishers or collectors from working
warning   left behind by a crash; the next `gc` clears it away
info      chunks that nothing names: what crashed publishers left for `gc`

Findings come one by one while the store is read. What is held meanwhile is one log at a time for
each worker, and eight bytes for every stored chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from adapter_store import layout
from adapter_store.errors import IntegrityError, InvalidName, NotFound, StoreRefused
from adapter_store.findings import Finding, Kind, Summary
from adapter_store.intent import decode_intent, decode_pin, decode_plan
from adapter_store.log_audit import LogAudit, LogSeen, short
from adapter_store.objects import ObjectStore, listed
from adapter_store.reap import REAP_AFTER_S
from adapter_store.record import decode_base_card
from adapter_store.retention import LogEntry, StoreClock, in_parallel, logs_of
from adapter_store.signing import Verifier

PARALLEL = 8
_LOOKS = 3
"""Times a log is read again because it grew while its chunks were looked for."""


class Examination:
    """One pass over a tenant; iterate over it for the findings, then read `summary`."""

    def __init__(
        self,
        store: ObjectStore,
        tenant: str,
        *,
        deep: bool = False,
        verifier: Verifier | None = None,
        parallel: int = PARALLEL,
        clock: StoreClock | None = None,
    ) -> None:
        """`deep` reads every live chunk; otherwise the store's own checksum is believed."""
        self._store = store
        self._tenant = layout.check_id("tenant", tenant)
        self._audit = LogAudit(store, tenant, deep=deep, verifier=verifier)
        self._parallel = parallel
        self._clock = clock or StoreClock(store, tenant)
        self._bases: set[str] = set()
        self._unnamed: set[int] = set()
        self._digests: set[str] = set()
        self.summary = Summary()

    def __iter__(self) -> Iterator[Finding]:
        """Raises StoreUnavailable and StoreRefused."""
        # The chunks are listed first, then the intents, then the log: a chunk on that list which a
        # publisher commits meanwhile is named by one of the two.
        for part in (self._base_cards, self._chunks, self._intents, self._plans, self._pins):
            yield from self._counted(part())
        yield from self._counted(self._logs())
        yield from self._counted(self._orphans())

    def _counted(self, findings: Iterator[Finding]) -> Iterator[Finding]:
        for finding in findings:
            self.summary.found[finding.severity] += 1
            yield finding

    def _base_cards(self) -> Iterator[Finding]:
        for head in listed(self._store, layout.base_cards_prefix()):
            try:
                card = decode_base_card(self._store.get(head.key))
                if layout.base_card_key(card.fingerprint) != head.key:
                    raise IntegrityError("it is the card of another base model")
            except (IntegrityError, InvalidName) as error:
                yield Finding(Kind.BASE_DAMAGED, head.key, str(error))
            else:
                self._bases.add(card.fingerprint)

    def _chunks(self) -> Iterator[Finding]:
        for head in listed(self._store, layout.blobs_prefix(self._tenant)):
            try:
                layout.parse_blob_key(head.key)
            except InvalidName:
                yield Finding(Kind.STRAY, head.key, "no chunk has such a key")
            else:
                self.summary.chunks += 1
                self._unnamed.add(short(head.key))

    def _intents(self) -> Iterator[Finding]:
        for head in listed(self._store, layout.intents_prefix(self._tenant)):
            try:
                intent = decode_intent(self._store.get(head.key))
            except NotFound:
                continue
            except IntegrityError as error:
                yield Finding(Kind.INTENT_DAMAGED, head.key, f"{error}; nothing is collected")
                continue
            self._digests.update(intent.digests)
            where = f"generation {intent.slot} of {intent.adapter}"
            if self._is_old(head.modified):
                taken = self._is_there(layout.log_key(self._tenant, intent.adapter, intent.slot))
                message = f"{where} is decided" if taken else f"{where} never came"
                yield Finding(Kind.INTENT_STALE, head.key, message)

    def _plans(self) -> Iterator[Finding]:
        for head in listed(self._store, layout.plans_prefix(self._tenant)):
            try:
                plan = decode_plan(self._store.get(head.key))
            except NotFound:
                continue
            except IntegrityError as error:
                yield Finding(Kind.PLAN_DAMAGED, head.key, f"{error}; nothing can be published")
                continue
            if self._is_old(head.modified):
                left = sum(short(key) in self._unnamed for key in plan.keys)
                message = f"a collection stopped, {left} of its {len(plan.keys)} chunks are left"
                yield Finding(Kind.PLAN_STALE, head.key, message)

    def _pins(self) -> Iterator[Finding]:
        for head in listed(self._store, layout.pins_prefix(self._tenant)):
            try:
                pin = decode_pin(self._store.get(head.key))
                own = layout.version_pins_prefix(self._tenant, pin.adapter, pin.vdig)
                if not head.key.startswith(own):
                    raise IntegrityError("it is the pin of another version")
            except NotFound:
                continue
            except IntegrityError as error:
                yield Finding(Kind.PIN_DAMAGED, head.key, f"{error}; nothing is collected")
                continue
            self.summary.pins += 1
            self._digests.update(pin.digests)
            for digest in pin.digests:
                prefix = layout.blob_prefix(self._tenant, digest)
                if not self._store.list(prefix, limit=1).keys:
                    message = f"{pin.adapter}@{pin.label} is pinned and a chunk of it is gone"
                    yield Finding(Kind.CHUNK_MISSING, prefix, message)

    def _logs(self) -> Iterator[Finding]:
        strays: list[str] = []
        logs = logs_of(self._store, self._tenant, stray=strays.append)
        for seen in in_parallel(self._audited, logs, self._parallel):
            self.summary.adapters += 1
            self.summary.records += seen.records
            self.summary.live_chunks += seen.live_chunks
            self.summary.bytes_read += seen.bytes_read
            self._unnamed -= seen.named
            yield from seen.findings
        for key in strays:
            yield Finding(Kind.STRAY, key, "no record has such a key")

    def _orphans(self) -> Iterator[Finding]:
        if not self._unnamed:
            return
        for head in listed(self._store, layout.blobs_prefix(self._tenant)):
            if short(head.key) in self._unnamed:
                with contextlib.suppress(InvalidName):
                    if layout.parse_blob_key(head.key) not in self._digests:
                        message = f"no record, intent or pin names it; {head.size} bytes"
                        yield Finding(Kind.ORPHAN, head.key, message)

    def _audited(self, log: list[LogEntry]) -> LogSeen:
        """One log and the chunks of what it serves; again when it grew in the meantime."""
        for _ in range(_LOOKS):
            seen = self._audit.examine(log, bases=self._bases)
            newest = log[0]
            above = layout.log_key(self._tenant, newest.adapter, newest.gen + 1)
            if not seen.lost_chunks or not self._is_there(above):
                break
            log = next(logs_of(self._store, self._tenant, adapter=newest.adapter), log)
        return seen

    def _is_there(self, key: str) -> bool:
        try:
            self._store.head(key)
        except NotFound:
            return False
        return True

    def _is_old(self, modified: float) -> bool:
        """Whether it is left behind; without the right to ask the store's time nothing is."""
        try:
            return self._clock.older(modified, REAP_AFTER_S)
        except StoreRefused:
            return False


def examine(store: ObjectStore, tenant: str, *, deep: bool = False) -> Examination:
    """What is wrong with a tenant's adapters: iterate, then read `.summary`."""
    return Examination(store, tenant, deep=deep)

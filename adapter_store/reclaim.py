"""Taking an adapter back after records that nobody trusts were written on top of it.

One signed record above them says what the last trusted one said. Nothing of theirs is adopted: not
their contents, not their labels, not their fence. Nodes step over what is between, and publishers
build on the new record as on any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adapter_store import layout
from adapter_store.draft import Author, chunks_of, fence_record
from adapter_store.errors import (
    Conflict,
    IntegrityError,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from adapter_store.intent import Intent
from adapter_store.log import Known, Log
from adapter_store.objects import ObjectStore
from adapter_store.record import Record, RecordKind
from adapter_store.signing import Signer, Verifier
from adapter_store.slot import Slot
from adapter_store.upload import condemned_keys, put_once

_ATTEMPTS = 5
_SETTLE_S = 30.0


def reclaim(
    store: ObjectStore,
    *,
    tenant: str,
    adapter: str,
    signer: Signer,
    verifier: Verifier,
    author: Callable[[], Author],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    empty: bool = False,
) -> Record | None:
    """The record that is trusted again on top of the log; None when the newest one is already.

    An adapter of which no record is trusted becomes a deleted one, and any with `empty`.

    Raises NotFound for an adapter without a log, IntegrityError when what was served last has lost
    bytes, Conflict when others keep writing, StoreUnavailable, StoreRefused.
    """
    log = Log(store, verifier, refused=lambda *seen: None)
    slot = Slot(store, clock=clock, sleep=sleep)
    for _ in range(_ATTEMPTS):
        known = log.foundation(tenant, adapter)
        if known.top_gen == 0:
            raise NotFound(f"there is no adapter {adapter!r}", hint="publish it first")
        if known.refused is None:
            return None
        ours = _over(known, author(), signer, empty=empty)
        intent = layout.intent_key(tenant, ours.txid, ours.attempt)
        digests = {chunk.sha256 for chunk in chunks_of(ours.contents())}
        body = Intent(adapter, ours.gen, tuple(sorted(digests))).encode()
        put_once(store, intent, body, sleep=sleep)
        try:
            _check_kept(store, ours)
            landed = _landed(slot, ours, clock() + _SETTLE_S)
        except StoreUnavailable:
            # The record may land yet: the intent keeps its chunks until somebody fills the slot.
            raise
        except StoreError:
            store.delete(intent)
            raise
        store.delete(intent)
        if landed:
            return ours
    raise Conflict(f"others keep writing to the log of {adapter}", hint="take their access away")


def _landed(slot: Slot, ours: Record, deadline: float) -> bool:
    try:
        return slot.occupy(ours, deadline=deadline).txid == ours.txid
    except IntegrityError:
        # What holds the slot is no record at all.
        return False


def _over(known: Known, author: Author, signer: Signer, *, empty: bool) -> Record:
    said = known.record
    below = said if said.gen else None
    record = fence_record(below, author, tenant=said.tenant, adapter=said.adapter)
    if empty:
        record = replace(record, active=None, staged=None, split=())
    kind = RecordKind.ROLLBACK if record.active else RecordKind.STAGE
    record = replace(
        record,
        gen=known.top_gen + 1,
        kind=kind if record.contents() else RecordKind.TOMBSTONE,
        parent=known.top_digest,
        fence=said.fence + 1,
    )
    return signer.sign(record, vouched=())


def _check_kept(store: ObjectStore, record: Record) -> None:
    condemned = condemned_keys(store, record.tenant)
    for chunk in chunks_of(record.contents()):
        try:
            kept = store.head(chunk.key).size == chunk.length and chunk.key not in condemned
        except NotFound:
            kept = False
        if not kept:
            raise IntegrityError(
                f"what {record.adapter} served last has lost bytes in the store",
                hint="take it back empty, then push its content again: "
                f"adapter-store reclaim {record.adapter} --empty",
            )

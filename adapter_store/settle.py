"""What became of a transaction whose publisher could not tell.

Each attempt of a transaction wrote an intent that names its slot. A slot that is held has its
answer; an empty one is filled with a fence record first, so that the answer stays true.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from adapter_store import layout
from adapter_store.draft import Author, fence_record
from adapter_store.errors import IntegrityError, NotFound, StoreError
from adapter_store.intent import Intent, decode_intent
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import Record
from adapter_store.slot import Slot


def settle(
    store: ObjectStore,
    reader: Reader,
    slot: Slot,
    *,
    tenant: str,
    adapter: str,
    txid: str,
    fence_author: Callable[[], Author],
    deadline: float,
) -> Record | None:
    """The record that `txid` committed, or None: it did not land and never will.

    Raises StoreUnavailable when a slot can neither be read nor filled, IntegrityError when the
    transaction belongs to another adapter.
    """
    keys = store.list(f"{layout.intents_prefix(tenant)}{layout.check_txid(txid)}.").keys
    landed: Record | None = None
    reaped = not keys
    for key in keys:
        try:
            intent = decode_intent(store.get(key))
        except NotFound:
            # Whoever took it away made sure that its slot is held.
            reaped = True
            continue
        if intent.adapter != adapter:
            raise IntegrityError(f"transaction {txid} is about adapter {intent.adapter!r}")
        holder = _holder(reader, tenant, intent)
        if holder is None:
            head = reader.record(tenant, adapter, intent.slot - 1) if intent.slot > 1 else None
            fence = fence_record(head, fence_author(), tenant=tenant, adapter=adapter)
            holder = slot.occupy(fence, deadline=deadline)
        if holder.txid == txid:
            landed = holder
    if landed is None and reaped:
        landed = _in_log(reader, tenant, adapter, txid)
    for key in keys:
        with contextlib.suppress(StoreError):
            store.delete(key)
    return landed


def _holder(reader: Reader, tenant: str, intent: Intent) -> Record | None:
    try:
        return reader.record(tenant, intent.adapter, intent.slot)
    except NotFound:
        return None


def _in_log(reader: Reader, tenant: str, adapter: str, txid: str) -> Record | None:
    try:
        return next((r for r in reader.history(tenant, adapter) if r.txid == txid), None)
    except NotFound:
        return None

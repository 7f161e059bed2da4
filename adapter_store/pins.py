"""Pins: versions that are kept whatever their age.

A pin is written before its maker reads the plans, a plan before its collector reads the pins: one
of the two sees the other, as with intents. A pin that finds a chunk condemned or gone came too
late and takes itself away again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from adapter_store import layout
from adapter_store.draft import chunks_of
from adapter_store.errors import AlreadyExists, NotFound, OutcomeUnknown
from adapter_store.intent import Pin, decode_pin
from adapter_store.objects import ObjectStore, listed
from adapter_store.reader import Resolved
from adapter_store.upload import condemned_keys, holds, put_once


def pin(store: ObjectStore, found: Resolved, *, sleep: Callable[[float], None] = time.sleep) -> Pin:
    """Keep a version from now on; pinning it again is fine.

    Raises NotFound when its bytes are no longer kept, StoreUnavailable.
    """
    version = found.version
    chunks = {chunk.key: chunk for chunk in chunks_of([version])}
    digests = tuple(sorted({chunk.sha256 for chunk in chunks.values()}))
    made = Pin(found.adapter, version.label, version.vdig, found.gen, digests)
    key = layout.pin_key(found.tenant, found.adapter, version.vdig)
    ours = _put(store, key, made.encode(), sleep)
    condemned = condemned_keys(store, found.tenant)
    if condemned.isdisjoint(chunks) and all(holds(store, k, c) for k, c in chunks.items()):
        return made
    if ours:
        store.delete(key)
    raise NotFound(
        f"version {version.label!r} of {found.adapter} is no longer kept",
        hint="publish its content again, then pin it",
    )


def unpin(store: ObjectStore, tenant: str, adapter: str, vdig: str) -> Pin:
    """Let retention decide again. Raises NotFound when it is not pinned."""
    key = layout.pin_key(tenant, adapter, vdig)
    try:
        made = decode_pin(store.get(key))
    except NotFound as error:
        raise NotFound(f"sha256:{vdig[:12]} of {adapter} is not pinned") from error
    store.delete(key)
    return made


def pins_of(store: ObjectStore, tenant: str, adapter: str = "") -> list[Pin]:
    """Every pin of one adapter, or of the tenant. Raises IntegrityError on a damaged one."""
    prefix = layout.pins_prefix(tenant)
    if adapter:
        prefix += f"{layout.check_id('adapter', adapter)}/"
    return [decode_pin(store.get(head.key)) for head in listed(store, prefix)]


def _put(store: ObjectStore, key: str, body: bytes, sleep: Callable[[float], None]) -> bool:
    """Whether this call made the pin; False when it was there."""
    try:
        store.put_new(key, body)
    except AlreadyExists:
        return False
    except OutcomeUnknown:
        put_once(store, key, body, sleep=sleep)
    return True

"""Pins: versions that are kept whatever their age.

A pin is written before its maker reads the plans, a plan before its collector reads the pins: one
of the two sees the other, as with intents. A pin that finds a chunk condemned or gone came too
late and takes itself away again.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable

from adapter_store import layout
from adapter_store.draft import chunks_of
from adapter_store.errors import NotFound
from adapter_store.intent import Pin, decode_pin
from adapter_store.objects import ObjectStore, listed
from adapter_store.reader import Resolved
from adapter_store.upload import condemned_keys, holds, put_once


def pin(
    store: ObjectStore,
    found: Resolved,
    *,
    sleep: Callable[[float], None] = time.sleep,
    new_id: Callable[[], str] = lambda: secrets.token_hex(16),
) -> Pin:
    """Keep a version from now on; pinning it again is fine.

    Raises NotFound when its bytes are no longer kept, StoreUnavailable.
    """
    version = found.version
    chunks = {chunk.key: chunk for chunk in chunks_of([version])}
    digests = tuple(sorted({chunk.sha256 for chunk in chunks.values()}))
    made = Pin(found.adapter, version.label, version.vdig, found.gen, digests)
    # Under a key of its own: nobody else's pin is taken away with it, and it relies on none.
    key = layout.pin_key(found.tenant, found.adapter, version.vdig, new_id())
    put_once(store, key, made.encode(), sleep=sleep)
    condemned = condemned_keys(store, found.tenant)
    if condemned.isdisjoint(chunks) and all(holds(store, k, c) for k, c in chunks.items()):
        return made
    store.delete(key)
    raise NotFound(
        f"version {version.label!r} of {found.adapter} is no longer kept",
        hint="publish its content again, then pin it",
    )


def unpin(store: ObjectStore, tenant: str, adapter: str, vdig: str) -> Pin:
    """Let retention decide again. Raises NotFound when it is not pinned."""
    keys = [head.key for head in listed(store, layout.version_pins_prefix(tenant, adapter, vdig))]
    made = _stored(store, keys)
    for key in keys:
        store.delete(key)
    if not made:
        raise NotFound(f"sha256:{vdig[:12]} of {adapter} is not pinned")
    return made[0]


def pins_of(store: ObjectStore, tenant: str, adapter: str = "") -> list[Pin]:
    """Each pinned version of an adapter, or of the tenant. Raises IntegrityError on damage."""
    prefix = layout.pins_prefix(tenant)
    if adapter:
        prefix += f"{layout.check_id('adapter', adapter)}/"
    found = _stored(store, [head.key for head in listed(store, prefix)])
    return list({(made.adapter, made.vdig): made for made in found}.values())


def _stored(store: ObjectStore, keys: list[str]) -> list[Pin]:
    """The pins under `keys` that are still there."""
    found = []
    for key in keys:
        with contextlib.suppress(NotFound):
            found.append(decode_pin(store.get(key)))
    return found

"""Intents whose publishers are gone, taken away without asking a clock whether they really are.

An intent can commit in its own slot and nowhere else. A taken slot therefore makes it dead; a free
one is filled with a fence record first, and the publisher, should it live, finds its slot taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapter_store import layout
from adapter_store.draft import Author, fence_record
from adapter_store.errors import IntegrityError, NotFound
from adapter_store.intent import Intent, decode_intent
from adapter_store.objects import ObjectStore, listed
from adapter_store.reader import Reader
from adapter_store.retention import StoreClock
from adapter_store.slot import Slot

REAP_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What became of a tenant's intents."""

    dead: int
    """Removed: their slots were taken."""
    fenced: int
    """Removed after a fence record took their slots."""
    waiting: int
    """Young, with a free slot: a publisher is at work, or stopped lately."""
    stuck: int
    """Not readable, or about no slot that could be filled; left for `fsck`."""


class Reaper:
    """Goes over the intents of one tenant."""

    def __init__(
        self,
        store: ObjectStore,
        tenant: str,
        *,
        clock: StoreClock,
        slot: Slot,
        author: Callable[[], Author],
        deadline: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._clock = clock
        self._slot = slot
        self._author = author
        self._deadline = deadline
        self._warn = warn
        self._reader = Reader(store)

    def reap(self, older_s: float) -> Reaped:
        """Remove dead intents, and those at least `older_s` old. Raises what the store raises."""
        dead = fenced = waiting = stuck = 0
        for head in listed(self._store, layout.intents_prefix(self._tenant)):
            try:
                intent = decode_intent(self._store.get(head.key))
                if self._taken(intent):
                    dead += 1
                elif self._clock.older(head.modified, older_s):
                    self._fence(intent)
                    fenced += 1
                else:
                    waiting += 1
                    continue
            except NotFound:
                # Its publisher finished meanwhile.
                continue
            except IntegrityError as error:
                self._warn(f"{head.key} stays: {error}")
                stuck += 1
                continue
            self._store.delete(head.key)
        return Reaped(dead=dead, fenced=fenced, waiting=waiting, stuck=stuck)

    def _taken(self, intent: Intent) -> bool:
        try:
            self._store.head(layout.log_key(self._tenant, intent.adapter, intent.slot))
        except NotFound:
            return False
        return True

    def _fence(self, intent: Intent) -> None:
        """Fill the slot with what the record below says already."""
        below = None
        if intent.slot > 1:
            try:
                below = self._reader.record(self._tenant, intent.adapter, intent.slot - 1)
            except NotFound as error:
                raise IntegrityError(
                    f"slot {intent.slot} of {intent.adapter} is not the next one"
                ) from error
        fence = fence_record(below, self._author(), tenant=self._tenant, adapter=intent.adapter)
        self._slot.occupy(fence, deadline=self._deadline())

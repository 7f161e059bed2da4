"""Who holds one slot of a log: the step that makes a commit happen once or not at all.

A slot is one key, created once. Whoever asks "did my commit land?" reads the slot; an empty slot
proves nothing while a request may still be on its way, so before anyone says "it did not", the
slot is filled with a fence record that changes nothing. Then the late request can only bounce.
"""

from __future__ import annotations

from collections.abc import Callable

from adapter_store import layout
from adapter_store.errors import (
    AlreadyExists,
    IntegrityError,
    NotFound,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
)
from adapter_store.objects import ObjectStore
from adapter_store.record import Record, decode_record

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


class Slot:
    """One contender's view of one log slot."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._in_flight = False

    def commit(
        self, record: Record, *, fence: Callable[[], Record], deadline: float, settle_s: float
    ) -> Record:
        """Put `record` into its slot; the record that holds the slot afterwards.

        It is `record` itself, another publisher's, or, when the deadline passed with the answer
        still open, the record that `fence` makes: then `record` can never land. Raises
        StoreUnavailable when nothing was ever sent, IntegrityError when what is no record holds
        the slot, and OutcomeUnknown when `settle_s` more seconds were not enough to learn or fill
        it.
        """
        try:
            holder = self._contend(record, deadline)
            if holder is None and not self._in_flight:
                raise StoreUnavailable(
                    "the store did not take the commit in time; nothing was committed",
                    hint="publish again when the store answers",
                )
            if holder is None:
                holder = self._contend(fence(), deadline + settle_s)
        except IntegrityError:
            # What holds the slot is no record, so it is not ours, and it stays.
            raise
        except StoreError as error:
            if not self._in_flight:
                raise
            raise _unknown(record.txid) from error
        if holder is None:
            raise _unknown(record.txid)
        return holder

    def occupy(self, fence: Record, *, deadline: float) -> Record:
        """Make sure the slot is taken; the record that holds it. Raises StoreUnavailable."""
        holder = self._contend(fence, deadline)
        if holder is None:
            raise StoreUnavailable("the store could not be asked who holds the slot")
        return holder

    def _contend(self, record: Record, deadline: float) -> Record | None:
        """Put, and on any doubt read, until the slot has a holder; None at the deadline."""
        key, body = layout.log_key(record.tenant, record.adapter, record.gen), record.encode()
        pause = _FIRST_PAUSE_S
        while self._clock() < deadline:
            try:
                self._store.put_new(key, body)
            except AlreadyExists:
                pass
            except OutcomeUnknown:
                self._in_flight = True
            except StoreUnavailable:
                pass
            else:
                return record
            try:
                return decode_record(self._store.get(key))
            except (NotFound, StoreUnavailable):
                self._sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
        return None


def _unknown(txid: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        "the commit was sent and the store cannot be asked whether it landed",
        txid=txid,
        hint=f"settle it when the store answers: transaction {txid}",
    )

"""Settling beside a reaper that clears up what is being settled."""

from __future__ import annotations

import pytest

from adapter_store.errors import Conflict, OutcomeUnknown
from adapter_store.gc import Collector
from adapter_store.memory import MemoryStore
from tests.adapter_store.faulty_store import Fault, FaultyStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    SteppedClock,
    adapter,
    keys,
    publish,
    publisher,
)


class GoesDark(FaultyStore):
    """The commit is met by `fault`; after it the log can be neither written nor read."""

    sent = False

    def put_new(self, key: str, body: bytes) -> None:
        if "/log/" not in key:
            return super().put_new(key, body)
        if self.sent:
            raise OutcomeUnknown("dark")
        self.sent = True
        self._at = range(len(self.operations), len(self.operations) + 1)
        return super().put_new(key, body)

    def get(self, key: str) -> bytes:
        if self.sent and "/log/" in key:
            raise OutcomeUnknown("dark")
        return super().get(key)


class ReapsAtFirstLook(MemoryStore):
    """Between the listing of intents and the reading of them, a reaper removes them all."""

    armed = False

    def get(self, key: str) -> bytes:
        if self.armed and "/txn/" in key:
            self.armed = False
            Collector(self, warn=print, parallel=1).reap(TENANT, older_s=0)
            assert keys(self, "txn") == ()
        return super().get(key)


@pytest.mark.parametrize(("fault", "landed"), [(Fault.LOST_ANSWER, True), (Fault.LATE, False)])
def test_an_intent_reaped_while_it_is_settled_changes_nothing_about_the_answer(
    fault: Fault, landed: bool
) -> None:
    store = ReapsAtFirstLook()
    publish(store, 1)
    clock = SteppedClock()
    dark = GoesDark(store, fault=fault)
    with pytest.raises(OutcomeUnknown) as caught:
        publisher(dark, clock=clock, sleep=clock.sleep).publish(TENANT, ADAPTER, adapter(2))
    store.armed = True
    if landed:
        assert publisher(store).settle(TENANT, ADAPTER, caught.value.txid).gen == 2
    else:
        with pytest.raises(Conflict, match="never will"):
            publisher(store).settle(TENANT, ADAPTER, caught.value.txid)
    assert not store.armed, "the reaper must have come between"

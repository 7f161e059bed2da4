"""A timeout is not a failure: what a publish says about its outcome is true for good."""

from __future__ import annotations

import contextlib

import pytest

from adapter_store import layout
from adapter_store.commit import Limits, Published
from adapter_store.errors import (
    AlreadyExists,
    Conflict,
    IntegrityError,
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from adapter_store.intent import Intent
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind
from adapter_store.slot import Slot
from tests.adapter_store.faulty_store import Fault, FaultyStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    SteppedClock,
    adapter,
    broken_promises,
    keys,
    publish,
    publisher,
    served_seed,
    view,
)
from tests.adapter_store.scenes import SCENES, act, commit_put, points, scene

FAULTS = [Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.LATE, Fault.UNAVAILABLE]


def fail_every_put_once(name: str, fault: Fault) -> list[str]:
    """One fault at each put in turn; nothing may be lost, doubled, or falsely called failed."""
    broken: list[str] = []
    for point in points(name, puts_only=True):
        store = scene(name)
        faulty = FaultyStore(store, at=point, fault=fault, puts_only=True)
        txid = f"{point:032x}"
        txids = iter([txid, *(f"{n:032x}" for n in range(1000, 1010))])
        done: list[Published] = []
        failed: list[str] = []
        try:
            done.append(act(name, faulty, new_txid=lambda: next(txids)))  # noqa: B023
        except StoreError:
            failed.append(txid)
        for arrive in faulty.late:
            arrive()
        found = broken_promises(store, acknowledged=done, failed_txids=failed)
        found += [] if not done or view(store) == SCENES[name].after else ["it is another state"]
        broken += [f"put {point}: {text}" for text in found]
    return broken


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SCENES)
def test_one_failed_write_is_never_a_lost_doubled_or_falsely_failed_change(
    name: str, fault: Fault
) -> None:
    assert fail_every_put_once(name, fault) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SCENES)
def test_a_single_lost_answer_does_not_fail_the_change(name: str, fault: Fault) -> None:
    for point in points(name, puts_only=True):
        store = scene(name)
        done = act(name, FaultyStore(store, at=point, fault=fault, puts_only=True))
        assert not done.unchanged
        assert Reader(store).head(TENANT, ADAPTER) == done.record
        assert view(store) == SCENES[name].after


@pytest.mark.parametrize("name", ["publish over another", "stage", "activate", "split", "delete"])
def test_taking_a_timeout_for_a_failure_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a publisher that does not look at the slot."""

    def hasty(self: Slot, record: Record, **rest: object) -> Record:
        key = layout.log_key(record.tenant, record.adapter, record.gen)
        try:
            self._store.put_new(key, record.encode())
        except OutcomeUnknown as error:
            raise StoreUnavailable("timed out, so it failed") from error
        return record

    monkeypatch.setattr(Slot, "commit", hasty)
    for fault in (Fault.LOST_ANSWER, Fault.LATE):
        broken = fail_every_put_once(name, fault)
        assert any("failed and is in the log" in text for text in broken)


def test_a_commit_called_off_at_its_deadline_can_never_land(store: MemoryStore) -> None:
    publish(store, 1)
    clock = SteppedClock()
    late = FaultyStore(
        store, at=commit_put("publish over another"), fault=Fault.LATE, puts_only=True
    )
    hurried = publisher(
        late, clock=clock, sleep=clock.sleep, limits=Limits(publish_s=0.01, settle_s=10)
    )
    with pytest.raises(StoreUnavailable, match="called off"):
        hurried.publish(TENANT, ADAPTER, adapter(2))
    head = Reader(store).head(TENANT, ADAPTER)
    assert (head.kind, head.gen) == (RecordKind.FENCE, 2)
    (arrive,) = late.late
    arrive()
    assert served_seed(store) == 1
    assert broken_promises(store) == []
    assert keys(store, "txn") == ()
    assert publish(store, 2).gen == 3


def test_a_commit_that_landed_unseen_before_its_deadline_is_reported_as_landed(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    clock = SteppedClock()

    class Unseen(FaultyStore):
        """The commit is applied, and neither it nor the first look at its slot is answered."""

        answered = True

        def put_new(self, key: str, body: bytes) -> None:
            super().put_new(key, body)
            if "/log/" in key:
                self.answered = False
                raise OutcomeUnknown("no answer")

        def get(self, key: str) -> bytes:
            if not self.answered:
                self.answered = True
                raise StoreUnavailable("no answer")
            return super().get(key)

    hurried = publisher(
        Unseen(store), clock=clock, sleep=clock.sleep, limits=Limits(publish_s=0.01, settle_s=10)
    )
    assert hurried.publish(TENANT, ADAPTER, adapter(2)).gen == 2
    assert served_seed(store) == 2


class GoesDark(FaultyStore):
    """From the commit on, nothing about the log is answered any more."""

    sent = False

    def put_new(self, key: str, body: bytes) -> None:
        if "/log/" in key and self.sent:
            raise StoreUnavailable("dark")
        self.sent = "/log/" in key
        super().put_new(key, body)

    def get(self, key: str) -> bytes:
        if self.sent:
            raise StoreUnavailable("dark")
        return super().get(key)


@pytest.mark.parametrize(("fault", "landed"), [(Fault.LOST_ANSWER, True), (Fault.LATE, False)])
@pytest.mark.parametrize("name", SCENES)
def test_an_unknown_outcome_of_any_kind_is_settled_for_good(
    name: str, fault: Fault, landed: bool
) -> None:
    store = scene(name)
    gens = len(keys(store, "a"))
    dark = GoesDark(store, at=commit_put(name), fault=fault, puts_only=True)
    with pytest.raises(OutcomeUnknown) as caught:
        act(name, dark)
    txid = caught.value.txid
    assert len(keys(store, "txn")) == 1
    for _ in range(2):
        if landed:
            settled = publisher(store).settle(TENANT, ADAPTER, txid)
            assert (settled.gen, settled.txid) == (gens + 1, txid)
            assert settled.record == Reader(store).head(TENANT, ADAPTER)
        else:
            with pytest.raises(Conflict, match="never will"):
                publisher(store).settle(TENANT, ADAPTER, txid)
        for arrive in dark.late:
            arrive()
    assert view(store) == (SCENES[name].after if landed else SCENES[name].before)
    assert keys(store, "txn") == ()
    assert broken_promises(store, failed_txids=[] if landed else [txid]) == []


@pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreRefused("expired")])
@pytest.mark.parametrize("verb", ["get", "list", "put_new"])
def test_settling_while_the_store_cannot_tell_is_still_unknown(
    verb: str, error: StoreError
) -> None:
    store = scene("stage")
    with pytest.raises(OutcomeUnknown) as caught:
        act("stage", GoesDark(store, at=commit_put("stage"), fault=Fault.LATE, puts_only=True))
    txid = caught.value.txid

    class Down(FaultyStore):
        pass

    def fails(*args: object, **options: object) -> None:
        raise error

    setattr(Down, verb, fails)
    with pytest.raises(OutcomeUnknown) as again:
        publisher(Down(store)).settle(TENANT, ADAPTER, txid)
    assert again.value.txid == txid
    assert len(keys(store, "txn")) == 1
    with pytest.raises(Conflict, match="never will"):
        publisher(store).settle(TENANT, ADAPTER, txid)


def test_a_transaction_of_another_adapter_is_not_settled_here(store: MemoryStore) -> None:
    store.put_new(layout.intent_key(TENANT, "a" * 32, 1), Intent("other", 1, ()).encode())
    with pytest.raises(IntegrityError, match="other"):
        publisher(store).settle(TENANT, ADAPTER, "a" * 32)
    assert len(keys(store, "txn")) == 1


def test_a_store_that_is_down_fails_the_publish_definitely_and_changes_nothing() -> None:
    for point in points("publish over another", puts_only=True):
        store = scene("publish over another")
        down = FaultyStore(store, at=point, fault=Fault.UNAVAILABLE, puts_only=True, lasts=10**6)
        with pytest.raises(StoreUnavailable, match="nothing was committed"):
            publish(down, 2)
        assert served_seed(store) == 1
        assert keys(store, "txn") == ()


def test_a_refusal_after_a_lost_answer_is_not_called_a_failure(store: MemoryStore) -> None:
    publish(store, 1)

    class Expires(FaultyStore):
        tries = 0

        def put_new(self, key: str, body: bytes) -> None:
            if "/log/" not in key:
                return super().put_new(key, body)
            self.tries += 1
            if self.tries > 1:
                raise StoreRefused("the key has expired")
            raise OutcomeUnknown("no answer")

    with pytest.raises(OutcomeUnknown):
        publish(Expires(store), 2)
    assert len(keys(store, "txn")) == 1


def test_a_plain_refusal_is_reported_as_one(store: MemoryStore) -> None:
    class ReadOnly(FaultyStore):
        def put_new(self, key: str, body: bytes) -> None:
            raise StoreRefused("read only")

    with pytest.raises(StoreRefused):
        publish(ReadOnly(store), 1)
    assert store.list("").keys == ()


def test_garbage_in_the_slot_of_a_lost_commit_is_a_definite_failure(store: MemoryStore) -> None:
    publish(store, 1)

    class Littered(FaultyStore):
        def put_new(self, key: str, body: bytes) -> None:
            if "/log/" not in key:
                return super().put_new(key, body)
            with contextlib.suppress(AlreadyExists):
                super().put_new(key, b"garbage")
            raise OutcomeUnknown("no answer")

    with pytest.raises(IntegrityError) as caught:
        publish(Littered(store), 2)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert keys(store, "txn") == ()

"""What a collection keeps and takes, and what is left when it stops anywhere."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from adapter_store import layout
from adapter_store.errors import IntegrityError, InvalidSetting, NotFound
from adapter_store.intent import Intent, Plan
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import RecordKind
from adapter_store.retention import DAY_S, Retention
from adapter_store.s3 import S3Store
from tests.adapter_store.collecting import (
    EAGER,
    Calendar,
    collect,
    dated_store,
    everything,
    kept_seeds,
)
from tests.adapter_store.faulty_store import Fault, FaultyStore, Killed
from tests.adapter_store.publishing import (
    ADAPTER,
    REF,
    TENANT,
    adapter,
    append,
    broken_promises,
    publish,
    publisher,
    roll_back,
    served_seed,
    split,
    stage,
)
from tests.adapter_store.publishing import delete as delete_adapter
from tests.adapter_store.signed import Trust, sign_and_publish, trusted


@pytest.fixture
def dated() -> tuple[MemoryStore, Calendar]:
    return dated_store()


def test_what_is_served_staged_or_split_stays_and_the_rest_goes() -> None:
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2, label="old")
    publish(store, 3, label="new")
    split(store, {"old": 1, "new": 1})
    stage(store, 4)
    stage(store, 5)
    done = collect(store)
    assert kept_seeds(store) >= {3, 5}
    assert not kept_seeds(store) & {1, 4}
    left = everything(store, "blob")
    assert (done.chunks - done.deleted, done.plans_left, done.spared) == (len(left), 0, 0)
    assert done.bytes_deleted > 0
    assert everything(store, "gc") == []
    assert broken_promises(store) == []


def test_the_newest_records_stay_however_old_they_are(dated: tuple[MemoryStore, Calendar]) -> None:
    store, calendar = dated
    for seed in range(6):
        publish(store, seed)
    calendar.pass_days(400)
    collect(store, Retention(keep=3, younger_s=7 * DAY_S))
    assert kept_seeds(store) == {3, 4, 5}


def test_young_records_stay_however_many_they_are(dated: tuple[MemoryStore, Calendar]) -> None:
    store, calendar = dated
    publish(store, 0)
    calendar.pass_days(4)
    for seed in range(1, 6):
        publish(store, seed)
    calendar.pass_days(4)
    collect(store, Retention(keep=2, younger_s=7 * DAY_S))
    assert kept_seeds(store) == {1, 2, 3, 4, 5}
    calendar.pass_days(4)
    collect(store, Retention(keep=2, younger_s=7 * DAY_S))
    assert kept_seeds(store) == {4, 5}


def test_age_is_judged_by_the_clock_of_the_store_alone(
    dated: tuple[MemoryStore, Calendar], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calendar = dated
    calendar.now = 0.0  # The store believes it is 1970.
    publish(store, 0)
    publish(store, 1)
    calendar.pass_days(6.9)
    assert collect(store, Retention(keep=1, younger_s=7 * DAY_S)).deleted == 0
    calendar.pass_days(0.2)
    assert collect(store, Retention(keep=1, younger_s=7 * DAY_S)).deleted == 1
    assert everything(store, "gc") == []


def test_a_rule_that_keeps_nothing_is_refused() -> None:
    for keep, younger_s in ((0, 1.0), (1, -1.0)):
        with pytest.raises(InvalidSetting):
            Retention(keep=keep, younger_s=younger_s)


def test_a_deleted_adapter_is_kept_as_long_as_a_young_one_and_then_goes_whole(
    dated: tuple[MemoryStore, Calendar],
) -> None:
    store, calendar = dated
    publish(store, 1)
    publish(store, 2)
    calendar.pass_days(30)
    delete_adapter(store)
    rules = Retention(keep=10, younger_s=7 * DAY_S)
    assert collect(store, rules).deleted == 0
    calendar.pass_days(8)
    collect(store, rules)
    assert everything(store, "blob") == []
    with pytest.raises(NotFound, match="no longer kept"):
        roll_back(store, to="v1")


def test_an_intent_keeps_what_it_speaks_of_and_its_plan_stays_until_it_is_gone() -> None:
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2)
    blobs = everything(store, "blob")
    digests = tuple(sorted({layout.parse_blob_key(key) for key in blobs}))
    intent = layout.intent_key(TENANT, "a" * 32, 1)
    collection_sees = layout.plan_key(TENANT, "b" * 32)
    store.put_new(intent, Intent(ADAPTER, 3, digests).encode())
    store.put_new(collection_sees, Plan(tuple(blobs)).encode())
    done = collect(store)
    assert (done.deleted, done.spared, done.resumed, done.plans_left) == (0, len(blobs), 1, 1)
    store.delete(intent)
    done = collect(store)
    assert (done.deleted, done.resumed) == (1, 1)
    # What is served was condemned by mistake: it stays, and so does the plan that names it.
    assert done.plans_left == 1
    assert served_seed(store) == 2


def test_reading_a_version_that_was_collected_says_that_it_is_no_longer_kept() -> None:
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2)
    collect(store)
    old = Reader(store).resolve(replace(REF, label="v1"))
    with pytest.raises(NotFound, match="no longer kept"):
        Reader(store).fetch(TENANT, old.version, adapter=ADAPTER)
    with pytest.raises(NotFound, match="no longer kept"):
        roll_back(store, to="v1")
    assert served_seed(store) == 2
    assert everything(store, "txn") == []


def test_a_plan_is_of_bounded_size_and_there_may_be_several() -> None:
    store = MemoryStore()
    for seed in range(8):
        publish(store, seed)
    watched = FaultyStore(store)
    done = collect(watched, plan_keys=3)
    plans = [text for text in watched.operations if text.startswith("put_new")]
    assert (len(plans), done.deleted, done.plans_left) == (3, 7, 0)
    assert everything(store, "gc") == []


def test_objects_that_are_no_chunks_are_left_alone() -> None:
    store = MemoryStore()
    publish(store, 1)
    stray = f"v1/t/{TENANT}/blob/notes.txt"
    store.put_new(stray, b"mine")
    warned: list[str] = []
    store.put_new(layout.plan_key(TENANT, "c" * 32), Plan((stray, "v1/format")).encode())
    collect(store, warn=warned.append)
    assert stray in everything(store, "blob")
    assert any("no chunk of ours" in text for text in warned)


@pytest.mark.parametrize("folder", ["txn", "pin", "gc", "log"])
def test_nothing_is_collected_while_something_is_damaged(folder: str) -> None:
    """Its chunks are not known, so any chunk may be one of them."""
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2)
    key = {
        "txn": layout.intent_key(TENANT, "a" * 32, 1),
        "pin": layout.pin_key(TENANT, ADAPTER, "a" * 64, "b" * 32),
        "gc": layout.plan_key(TENANT, "a" * 32),
        "log": layout.log_key(TENANT, ADAPTER, 3),
    }[folder]
    store.put_new(key, b"{}")
    before = everything(store, "blob")
    with pytest.raises(IntegrityError) as refused:
        collect(store)
    assert key in str(refused.value)
    assert "fsck" in refused.value.hint
    assert everything(store, "blob") == before


def test_with_a_trust_file_what_is_trusted_stays_under_any_heap_of_forgeries(
    dated: tuple[MemoryStore, Calendar],
) -> None:
    store, calendar = dated
    sign_and_publish(store, 1)
    for _ in range(12):
        append(store, kind=RecordKind.TOMBSTONE, active=None)
    store.put_new(layout.log_key(TENANT, ADAPTER, 14), b"no record at all")
    calendar.pass_days(30)
    before = everything(store, "blob")
    collect(store, Retention(keep=10, younger_s=DAY_S), verifier=Trust(trusted()))
    assert everything(store, "blob") == before
    # The control: whoever believes every record believes the tombstone.
    store.delete(layout.log_key(TENANT, ADAPTER, 14))
    collect(store, Retention(keep=10, younger_s=DAY_S))
    assert everything(store, "blob") == []


def garbage_and_a_stale_plan() -> MemoryStore:
    """Three plans' worth of garbage, one of them left by a collector that stopped halfway."""
    store = MemoryStore()
    for seed in range(6):
        publish(store, seed)
    stopped = FaultyStore(store, at=_second_delete(store), fault=Fault.KILL_BEFORE)
    with pytest.raises(Killed):
        collect(stopped)
    publish(store, 6)
    publish(store, 7)
    return store


def _second_delete(store: MemoryStore) -> int:
    """The number of a collection's second delete, found on a copy."""
    copy = MemoryStore()
    for key in store.list("").keys:
        copy.put_new(key, store.get(key))
    clean = FaultyStore(copy)
    collect(clean)
    return [n for n, text in enumerate(clean.operations) if text.startswith("delete")][1]


def test_a_collector_killed_at_any_operation_loses_nothing_and_the_next_one_finishes() -> None:
    clean = FaultyStore(garbage_and_a_stale_plan())
    whole = collect(clean, plan_keys=1)
    assert whole.resumed == 1
    assert len(clean.operations) >= 20
    for point in range(len(clean.operations)):
        for fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER):
            store = garbage_and_a_stale_plan()
            with pytest.raises(Killed):
                collect(FaultyStore(store, at=point, fault=fault), plan_keys=1)
            where = f"{fault.value} {point} ({clean.operations[point]})"
            assert served_seed(store) == 7, where
            collect(store)
            assert everything(store, "gc") == [], where
            assert kept_seeds(store) == {7}, where
            assert broken_promises(store) == [], where


def test_a_collector_that_ignores_the_plans_of_others_is_caught_by_the_crash_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control."""
    store = garbage_and_a_stale_plan()
    monkeypatch.setattr("adapter_store.gc.stored_plans", lambda store, tenant: {})
    collect(store)
    assert everything(store, "gc") != []


@pytest.mark.services
def test_on_a_real_store_a_stream_of_publishes_beside_collectors_loses_nothing(
    s3_store: S3Store,
) -> None:
    """Five contents in turn, so that each publish may want what a collector is taking away."""
    done, failed = threading.Event(), []
    collected = []

    def collect_until_done() -> None:
        try:
            while not done.is_set():
                collected.append(collect(s3_store, EAGER, parallel=4))
        except Exception as error:
            failed.append(error)

    collectors = [threading.Thread(target=collect_until_done) for _ in range(2)]
    publish(s3_store, 0)
    for thread in collectors:
        thread.start()
    acknowledged = []
    try:
        for turn in range(1, 25):
            acknowledged.append(publish(s3_store, turn % 5))
            assert served_seed(s3_store) == turn % 5
    finally:
        done.set()
        for thread in collectors:
            thread.join()
    assert failed == []
    assert sum(result.deleted for result in collected) >= 5
    assert broken_promises(s3_store, acknowledged=acknowledged) == []
    collect(s3_store)
    assert kept_seeds(s3_store) == {24 % 5}


def test_a_collection_reads_no_record_twice_and_lists_no_adapter_by_itself() -> None:
    store = MemoryStore()
    for number in range(50):
        publisher(store).publish(TENANT, f"voice-{number}", adapter(number % 3))
    publish(store, 4)
    publish(store, 5)
    watched = FaultyStore(store)
    done = collect(watched)
    assert done.deleted == 1
    reads = [text for text in watched.operations if text.startswith("get")]
    assert len(reads) == len(set(reads)) == 52 - 1
    assert len([text for text in watched.operations if text.startswith("list")]) == 8

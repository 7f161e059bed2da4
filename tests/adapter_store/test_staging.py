"""What staging and activating write, keep, end and refuse."""

from __future__ import annotations

import pytest

from adapter_store.commit import Published
from adapter_store.errors import Conflict, IntegrityError, NotFound
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import RecordKind
from tests.adapter_store.faulty_store import RacingStore
from tests.adapter_store.publishing import (
    ADAPTER,
    REF,
    TENANT,
    View,
    activate,
    adapter,
    broken_promises,
    delete,
    keys,
    publish,
    publisher,
    served_seed,
    split,
    stage,
    version,
    view,
)


def test_staging_sends_the_bytes_and_changes_nothing_that_is_served(store: MemoryStore) -> None:
    publish(store, 1)
    done = stage(store, 2)
    assert (done.gen, done.kind, done.label, done.unchanged) == (2, RecordKind.STAGE, "v2", False)
    assert done.bytes_sent > 0
    assert view(store) == View(active=1, staged=2)
    assert served_seed(store) == 1
    assert version(store, "v2").vdig == version(store, f"sha256:{done.vdig}").vdig == done.vdig
    assert keys(store, "txn") == ()
    assert broken_promises(store, acknowledged=[done]) == []


def test_a_first_staging_serves_nothing_until_it_is_activated(store: MemoryStore) -> None:
    done = stage(store, 1, label="first")
    with pytest.raises(NotFound, match="'first' is staged") as caught:
        Reader(store).resolve(REF)
    assert "activate" in caught.value.hint
    assert version(store, "first").vdig == done.vdig
    assert activate(store).gen == 2
    assert view(store) == View(active=1)


def test_activating_serves_what_is_staged_and_sends_nothing(store: MemoryStore) -> None:
    publish(store, 1)
    stage(store, 2, label="next")
    done = activate(store)
    assert (done.gen, done.kind, done.label) == (3, RecordKind.ACTIVATE, "next")
    assert done.bytes_sent == 0
    assert view(store) == View(active=2)
    again = activate(store)
    assert (again.unchanged, again.gen, again.label) == (True, 3, "next")


def test_activating_when_nothing_is_staged_is_not_found(store: MemoryStore) -> None:
    publish(store, 1)
    with pytest.raises(NotFound, match="nothing of pirate is staged") as caught:
        activate(store)
    assert "name one" in caught.value.hint
    assert len(keys(store, "a")) == 1


@pytest.mark.parametrize("how", ["label", "digest"])
def test_anything_in_the_log_can_be_activated_by_label_or_digest(
    pair: MemoryStore, how: str
) -> None:
    digest = version(pair, "v1").vdig
    stage(pair, 3)
    done = activate(pair, label="v1" if how == "label" else f"sha256:{digest}")
    assert (done.label, done.vdig, done.bytes_sent) == ("v1", digest, 0)
    assert view(pair) == View(active=1)
    assert version(pair, "v3").label == "v3"


def test_staging_again_replaces_what_was_staged_and_says_so_when_it_is_the_same(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    stage(store, 2)
    stage(store, 3)
    assert view(store) == View(active=1, staged=3)
    before = store.list("").keys
    again = stage(store, 3)
    assert (again.unchanged, again.gen, again.label) == (True, 3, "v3")
    assert store.list("").keys == before


def test_staging_what_is_active_takes_its_label_and_no_bytes(store: MemoryStore) -> None:
    publish(store, 1, label="one")
    done = stage(store, 1)
    assert (done.label, done.bytes_sent) == ("one", 0)
    assert view(store) == View(active=1, staged=1)


@pytest.mark.parametrize("change", ["publish", "publish the same", "rollback", "activate"])
def test_what_becomes_active_ends_staging_and_says_what_it_set_aside(
    pair: MemoryStore, change: str
) -> None:
    stage(pair, 3, label="next")
    warnings: list[str] = []
    at = publisher(pair, warn=warnings.append)
    active = {"publish": 4, "publish the same": 2, "rollback": 1, "activate": 1}[change]
    if change == "rollback":
        at.rollback(TENANT, ADAPTER)
    elif change == "activate":
        at.activate(TENANT, ADAPTER, label="v1")
    else:
        at.publish(TENANT, ADAPTER, adapter(active))
    assert view(pair) == View(active=active)
    assert "next is no longer staged; stage it again if it is still wanted" in warnings
    again = stage(pair, 3)
    assert (again.bytes_sent, view(pair)) == (0, View(active=active, staged=3))


def test_publishing_what_is_staged_activates_it_without_sending_it(store: MemoryStore) -> None:
    publish(store, 1)
    stage(store, 2, label="next")
    warnings: list[str] = []
    done = publisher(store, warn=warnings.append).publish(TENANT, ADAPTER, adapter(2))
    assert (done.label, done.bytes_sent, view(store)) == ("next", 0, View(active=2))
    assert not any("staged" in text for text in warnings)


@pytest.mark.parametrize("other", ["publish", "stage", "split", "delete"])
def test_an_activation_of_whatever_is_staged_stops_when_anything_changed_meanwhile(
    pair: MemoryStore, other: str
) -> None:
    stage(pair, 3)
    acts = {
        "publish": lambda: publish(pair, 4),
        "stage": lambda: stage(pair, 4),
        "split": lambda: split(pair, {"v1": 1, "v2": 1}),
        "delete": lambda: delete(pair),
    }
    racing = RacingStore(pair, acts[other])
    with pytest.raises(Conflict, match="changed what"):
        activate(racing)
    assert Reader(pair).head(TENANT, ADAPTER).kind.value == other.replace("delete", "tombstone")
    assert keys(pair, "txn") == ()


def test_a_staging_that_lost_the_slot_goes_on_top_and_keeps_what_the_other_serves(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    others: list[Published] = []
    done = stage(RacingStore(store, lambda: others.append(publish(store, 3))), 2)
    assert (done.gen, done.attempt) == (3, 2)
    assert view(store) == View(active=3, staged=2)
    assert broken_promises(store, acknowledged=[done, *others]) == []
    with pytest.raises(Conflict, match="changed what"):
        stage(RacingStore(store, lambda: publish(store, 4)), 5, rebase=False)
    assert view(store) == View(active=4)


def test_lost_bytes_of_what_is_staged_are_sent_again(store: MemoryStore) -> None:
    publish(store, 1)
    staged = stage(store, 2)
    key = next(k for k in keys(store, "blob") if store.head(k).size > 1000 and staged.txid in k)
    store.delete(key)
    with pytest.raises(IntegrityError, match="is gone"):
        Reader(store).fetch(TENANT, version(store, "v2"), adapter=ADAPTER)
    again = stage(store, 2)
    assert (again.unchanged, again.label) == (False, "v2")
    assert view(store) == View(active=1, staged=2)

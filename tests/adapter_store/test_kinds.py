"""What splitting and deleting write, keep, end and refuse; what records of every kind keep."""

from __future__ import annotations

import pytest

from adapter_store import layout
from adapter_store.commit import Published
from adapter_store.errors import Conflict, InvalidName, InvalidSplit, NotFound
from adapter_store.intent import Plan, decode_intent
from adapter_store.layout import parse_ref
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import MAX_WEIGHT, IndexEntry, RecordKind
from tests.adapter_store.faulty_store import FaultyStore, Killed, RacingStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    View,
    activate,
    adapter,
    append,
    broken_promises,
    delete,
    keys,
    publish,
    publisher,
    roll_back,
    served_seed,
    split,
    stage,
    version,
    view,
)


def test_a_split_names_its_arms_and_leaves_the_active_version_to_fall_back_on(
    pair: MemoryStore,
) -> None:
    done = split(pair, {"v1": 95, "v2": 5})
    assert (done.gen, done.kind, done.bytes_sent) == (3, RecordKind.SPLIT, 0)
    assert [(a.weight, a.version.label) for a in done.record.split] == [(95, "v1"), (5, "v2")]
    assert view(pair) == View(active=2, split=((95, 1), (5, 2)))
    assert served_seed(pair) == 2
    assert split(pair, {"v1": 95, "v2": 5}).unchanged
    assert not split(pair, {"v1": 90, "v2": 10}).unchanged
    assert broken_promises(pair, acknowledged=[done]) == []


def test_staging_and_splitting_leave_each_other_alone(pair: MemoryStore) -> None:
    stage(pair, 3)
    split(pair, {"v1": 1, "v3": 1})
    assert view(pair) == View(active=2, staged=3, split=((1, 1), (1, 3)))
    stage(pair, 4)
    assert view(pair) == View(active=2, staged=4, split=((1, 1), (1, 3)))
    split(pair, {"v1": 2, "v3": 1})
    again = stage(pair, 4)
    assert (again.unchanged, again.kind, again.label) == (True, RecordKind.SPLIT, "v5")


@pytest.mark.parametrize(
    "change", ["publish", "publish the same", "rollback", "activate", "delete"]
)
def test_what_becomes_active_ends_the_split(pair: MemoryStore, change: str) -> None:
    split(pair, {"v1": 95, "v2": 5})
    expected = {
        "publish": View(active=3),
        "publish the same": View(active=2),
        "rollback": View(active=2),
        "activate": View(active=1),
        "delete": View(),
    }[change]
    warnings: list[str] = []
    at = publisher(pair, warn=warnings.append)
    done: Published = {
        "publish": lambda: at.publish(TENANT, ADAPTER, adapter(3)),
        "publish the same": lambda: at.publish(TENANT, ADAPTER, adapter(2)),
        "rollback": lambda: at.rollback(TENANT, ADAPTER),
        "activate": lambda: at.activate(TENANT, ADAPTER, label="v1"),
        "delete": lambda: at.delete(TENANT, ADAPTER),
    }[change]()
    assert (done.gen, done.unchanged) == (4, False)
    assert view(pair) == expected
    assert ("the split over v1, v2 has ended" in warnings) == change.startswith("publish")


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"v1": 1},
        {f"v{n}": 1 for n in range(9)},
        {"v1": 0, "v2": 1},
        {"v1": -1, "v2": 1},
        {"v1": True, "v2": 1},
        {"v1": 0.5, "v2": 0.5},
        {"v1": MAX_WEIGHT + 1, "v2": 1},
        {"v1": 1, "same": 1},
    ],
)
def test_weights_that_make_no_split_are_refused_and_send_nothing(
    pair: MemoryStore, weights: dict[str, int]
) -> None:
    publish(pair, 1, label="same")
    before = pair.list("").keys
    with pytest.raises(InvalidSplit) as caught:
        split(pair, weights)
    assert "v1=95" in caught.value.hint
    assert pair.list("").keys == before


def test_a_split_over_versions_that_are_not_there_is_not_found(pair: MemoryStore) -> None:
    for weights in ({"v1": 1, "nope": 1}, {"v1": 1, f"sha256:{'0' * 64}": 1}):
        with pytest.raises(NotFound, match="no version"):
            split(pair, weights)
    with pytest.raises(InvalidName):
        split(pair, {"v1": 1, "a/b": 1})
    delete(pair)
    with pytest.raises(NotFound, match="fall back"):
        split(pair, {"v1": 1, "v2": 1})
    assert keys(pair, "txn") == ()


def test_arms_whose_chunks_are_condemned_are_copied_and_gone_ones_fail(pair: MemoryStore) -> None:
    needed = {c.key for f in version(pair, "v2").files for c in f.chunks}
    old = tuple(
        chunk.key
        for file in version(pair, "v1").files
        for chunk in file.chunks
        if chunk.key not in needed
    )
    pair.put_new(layout.plan_key(TENANT, "a" * 32), Plan(old).encode())
    done = split(pair, {"v1": 1, "v2": 1})
    assert done.bytes_sent == sum(pair.head(key).size for key in old) > 0
    for key in old:
        pair.delete(key)
    assert view(pair) == View(active=2, split=((1, 1), (1, 2)))
    assert version(pair, "v1").files[0].chunks[0].key not in old

    publish(pair, 3)
    weights = version(pair, "v1").files[1]
    pair.delete(weights.chunks[0].key)
    with pytest.raises(NotFound, match="no longer kept"):
        split(pair, {"v1": 1, "v2": 1})
    assert view(pair) == View(active=3)
    assert keys(pair, "txn") == ()


def test_a_deleted_adapter_serves_nothing_until_something_is_published(pair: MemoryStore) -> None:
    stage(pair, 3)
    done = delete(pair)
    assert (done.gen, done.kind, done.label, done.vdig) == (4, RecordKind.TOMBSTONE, "", "")
    assert view(pair) == View()
    for text in (ADAPTER, f"{ADAPTER}@v1", f"{ADAPTER}@v3"):
        with pytest.raises(NotFound, match="was deleted") as caught:
            Reader(pair).resolve(parse_ref(text))
        assert "publish it again" in caught.value.hint
    assert delete(pair).unchanged
    revived = publish(pair, 4)
    assert (revived.gen, revived.label) == (5, "v5")
    assert view(pair) == View(active=4)
    assert broken_promises(pair, acknowledged=[done, revived]) == []


def test_labels_keep_their_meaning_over_a_deletion(pair: MemoryStore) -> None:
    first = version(pair, "v1").vdig
    delete(pair)
    with pytest.raises(Conflict, match="'v1' names other content"):
        publish(pair, 5, label="v1")
    assert (roll_back(pair).label, view(pair)) == ("v2", View(active=2))
    assert version(pair, "v1").vdig == first
    delete(pair)
    assert activate(pair, label="v1").gen == 6
    assert view(pair) == View(active=1)


def test_what_is_staged_after_a_deletion_is_all_there_is(pair: MemoryStore) -> None:
    delete(pair)
    stage(pair, 3)
    assert view(pair) == View(staged=3)
    assert version(pair, "v4").label == "v4"
    with pytest.raises(NotFound):
        version(pair, "v1")
    activate(pair)
    assert version(pair, "v1").label == "v1"


def test_only_an_adapter_with_a_log_can_be_activated_split_or_deleted(store: MemoryStore) -> None:
    for change in (activate, delete, roll_back, lambda s: split(s, {"a": 1, "b": 1})):
        with pytest.raises(NotFound, match="no adapter"):
            change(store)
    assert store.list("").keys == ()


def test_every_change_is_refused_to_a_caller_who_expected_another_generation(
    pair: MemoryStore,
) -> None:
    changes = {
        "stage": lambda gen: stage(pair, 3, expect_gen=gen),
        "activate": lambda gen: activate(pair, expect_gen=gen),
        "split": lambda gen: split(pair, {"v1": 1, "v3": 1}, expect_gen=gen),
        "rollback": lambda gen: roll_back(pair, to="v1", expect_gen=gen),
        "delete": lambda gen: delete(pair, expect_gen=gen),
    }
    for behind, (name, change) in enumerate(changes.items(), start=1):
        with pytest.raises(Conflict, match=f"generation {behind + 1}, not {behind}"):
            change(behind)
        assert change(behind + 1).kind.value in (name, "tombstone")


def test_a_fence_after_any_kind_keeps_all_it_says(pair: MemoryStore) -> None:
    stage(pair, 3)
    split(pair, {"v1": 95, "v3": 5})
    before = Reader(pair).head(TENANT, ADAPTER)
    fence = append(pair)
    assert fence.kind is RecordKind.FENCE
    assert (fence.contents(), fence.split, fence.versions, fence.fence) == (
        before.contents(),
        before.split,
        before.versions,
        before.fence,
    )
    assert fence.parent == before.digest()
    assert view(pair) == View(active=2, staged=3, split=((95, 1), (5, 3)))
    delete(pair)
    append(pair)
    assert view(pair) == View()
    assert broken_promises(pair) == []


def test_the_index_points_at_the_newest_record_that_brought_a_version_in(
    pair: MemoryStore,
) -> None:
    stage(pair, 3)
    split(pair, {"v1": 1, "v3": 1})
    delete(pair)
    index = Reader(pair).head(TENANT, ADAPTER).versions
    assert [(entry.label, entry.gen) for entry in index] == [("v2", 2), ("v1", 4), ("v3", 4)]
    assert all(isinstance(entry, IndexEntry) for entry in index)


def test_the_intent_of_a_change_names_every_chunk_of_its_record(pair: MemoryStore) -> None:
    stage(pair, 3)
    commit = len(keys(pair, "a"))
    with pytest.raises(Killed):
        split(RacingStoreKilling(pair), {"v1": 1, "v2": 1})
    (left,) = keys(pair, "txn")
    named = decode_intent(pair.get(left)).digests
    needed = {
        chunk.sha256
        for text in ("v1", "v2", "v3")
        for file in version(pair, text).files
        for chunk in file.chunks
    }
    assert set(named) == needed
    assert len(keys(pair, "a")) == commit


class RacingStoreKilling(FaultyStore):
    """Dies right before its commit."""

    def put_new(self, key: str, body: bytes) -> None:
        if "/log/" in key:
            self._die()
        super().put_new(key, body)


def test_a_split_or_deletion_stops_when_only_the_weights_changed_meanwhile(
    pair: MemoryStore,
) -> None:
    split(pair, {"v1": 95, "v2": 5})
    for change in (delete, lambda s: split(s, {"v1": 80, "v2": 20})):
        turn = Reader(pair).head(TENANT, ADAPTER).gen
        racing = RacingStore(pair, lambda turn=turn: split(pair, {"v1": turn, "v2": 1}))
        with pytest.raises(Conflict, match="changed what"):
            change(racing)
        assert Reader(pair).head(TENANT, ADAPTER).split[0].weight == turn


def test_a_fence_in_between_stops_nobody(pair: MemoryStore) -> None:
    stage(pair, 3)
    for change in (activate, lambda s: split(s, {"v1": 1, "v2": 1}), delete):
        change(RacingStore(pair, lambda: append(pair)))
    kinds = [record.kind.value for record in Reader(pair).history(TENANT, ADAPTER)]
    assert kinds[:6] == ["tombstone", "fence", "split", "fence", "activate", "fence"]

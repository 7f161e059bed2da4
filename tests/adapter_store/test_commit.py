"""What a publish and a rollback write, reuse and refuse when nothing fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from adapter_store import layout
from adapter_store.errors import (
    Conflict,
    IntegrityError,
    InvalidName,
    NotFound,
)
from adapter_store.intent import Plan, decode_intent
from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectHead
from adapter_store.reader import Reader
from adapter_store.record import MAX_RECORD_BYTES, Chunk, FileEntry, IndexEntry, RecordKind
from tests.adapter_store.faulty_store import FaultyStore, Killed, RacingStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    adapter,
    append,
    broken_promises,
    keys,
    publish,
    publisher,
    served_seed,
    tombstone,
)


def test_a_first_publish_serves_and_leaves_no_intent(store: MemoryStore) -> None:
    done = publish(store, 1)
    assert (done.gen, done.kind, done.label, done.attempt) == (1, RecordKind.PUBLISH, "v1", 1)
    assert not done.unchanged
    assert done.bytes_sent == sum(map(len, adapter(1).files.values()))
    assert served_seed(store) == 1
    assert keys(store, "txn") == ()
    assert broken_promises(store, acknowledged=[done]) == []


def test_equal_content_is_not_published_twice(store: MemoryStore) -> None:
    first = publish(store, 1)
    before = store.list("").keys
    again = publish(store, 1)
    assert again.unchanged
    assert (again.gen, again.vdig, again.bytes_sent) == (1, first.vdig, 0)
    assert store.list("").keys == before


def test_equal_content_under_a_new_label_gets_the_label_and_sends_no_bytes(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    named = publish(store, 1, label="stable")
    assert (named.gen, named.unchanged, named.bytes_sent) == (2, False, 0)
    assert publish(store, 1, label="v1").unchanged


@pytest.mark.parametrize("damage", [None, b"x"])
def test_publishing_lost_content_again_repairs_it_under_its_label(
    store: MemoryStore, damage: bytes | None
) -> None:
    publish(store, 1, label="one")
    key = keys(store, "blob")[0]
    size = len(store.get(key))
    store.delete(key)
    if damage is not None:
        store.put_new(key, damage * size)
    again = publish(store, 1)
    assert (again.gen, again.label, again.unchanged, again.bytes_sent) == (2, "one", False, size)
    assert served_seed(store) == 1


def test_a_label_never_comes_to_mean_other_content(store: MemoryStore) -> None:
    publish(store, 1, label="one")
    publish(store, 2)
    with pytest.raises(Conflict, match="'one'") as caught:
        publish(store, 3, label="one")
    assert caught.value.hint
    assert served_seed(store) == 2


def test_a_default_label_that_is_taken_is_made_unique(store: MemoryStore) -> None:
    publish(store, 1, label="v2")
    done = publish(store, 2)
    assert done.label == f"v2-{done.vdig[:8]}"


def test_names_that_break_the_grammar_send_nothing(store: MemoryStore) -> None:
    for tenant, name, label in (("A", "a", None), ("t", "a/b", None), ("t", "a", "x y")):
        with pytest.raises(InvalidName):
            publisher(store).publish(tenant, name, adapter(1), label=label)
    assert store.list("").keys == ()


def test_shared_bytes_are_sent_once(store: MemoryStore) -> None:
    publish(store, 1)
    done = publish(store, 2)
    config = len(adapter(2).files["adapter_config.json"])
    assert done.bytes_reused == config
    assert done.bytes_sent == sum(map(len, adapter(2).files.values())) - config


def test_large_files_travel_in_chunks_and_come_back_whole(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 256)
    publish(store, 1)
    chunks = Reader(store).head(TENANT, ADAPTER).active.files[1].chunks  # type: ignore[union-attr]
    assert len(chunks) > 5
    assert served_seed(store) == 1


def test_progress_adds_up(store: MemoryStore) -> None:
    class Progress:
        total = done = 0

        def planned(self, files: Sequence[FileEntry]) -> None:
            self.total = sum(file.size for file in files)

        def sent(self, file: str, chunk: Chunk) -> None:
            self.done += chunk.length

        reused = sent

    publish(store, 1)
    progress = Progress()
    publish(store, 2, progress=progress)
    assert progress.total == progress.done == sum(map(len, adapter(2).files.values()))


def test_a_caller_who_expected_another_generation_is_refused(store: MemoryStore) -> None:
    publish(store, 1, expect_gen=0)
    with pytest.raises(Conflict, match="generation 1, not 0"):
        publish(store, 2, expect_gen=0)
    publish(store, 2, expect_gen=1)
    assert served_seed(store) == 2


def test_the_oldest_labels_are_forgotten_before_a_record_grows_too_large(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    many = tuple(IndexEntry(f"{n:060d}", f"{n:064x}", 1) for n in range(1100))
    append(store, versions=many[:1024])
    publish(store, 2)
    head = Reader(store).head(TENANT, ADAPTER)
    assert len(head.encode()) <= MAX_RECORD_BYTES
    assert head.versions[-1].label == "v3"


def test_a_rollback_is_a_new_generation_of_old_content_and_sends_nothing(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    publish(store, 2)
    for wanted, gen in ((1, 3), (2, 4), (1, 5)):
        done = publisher(store).rollback(TENANT, ADAPTER)
        assert (done.gen, done.kind, done.bytes_sent) == (gen, RecordKind.ROLLBACK, 0)
        assert served_seed(store) == wanted
    digest = Reader(store).record(TENANT, ADAPTER, 2).active.vdig  # type: ignore[union-attr]
    assert publisher(store).rollback(TENANT, ADAPTER, to=f"sha256:{digest}").label == "v2"
    assert publisher(store).rollback(TENANT, ADAPTER, to="v2").unchanged


def test_a_rollback_revives_a_deleted_adapter(store: MemoryStore) -> None:
    publish(store, 1)
    tombstone(store)
    publisher(store).rollback(TENANT, ADAPTER)
    assert served_seed(store) == 1


def test_a_rollback_to_nowhere_is_not_found(store: MemoryStore) -> None:
    with pytest.raises(NotFound):
        publisher(store).rollback(TENANT, ADAPTER)
    publish(store, 1)
    for to in (None, "nope", f"sha256:{'0' * 64}"):
        with pytest.raises(NotFound) as caught:
            publisher(store).rollback(TENANT, ADAPTER, to=to)
        assert caught.value.hint
    assert broken_promises(store) == []


def test_a_rollback_to_condemned_chunks_copies_them_and_to_gone_ones_fails(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    old = keys(store, "blob")
    publish(store, 2)
    store.put_new(layout.plan_key(TENANT, "a" * 32), Plan(old).encode())
    done = publisher(store).rollback(TENANT, ADAPTER, to="v1")
    assert done.bytes_sent == sum(map(len, adapter(1).files.values()))
    for key in old:
        store.delete(key)
    assert served_seed(store) == 1

    publish(store, 3)
    weights = Reader(store).record(TENANT, ADAPTER, 2).active.files[1]  # type: ignore[union-attr]
    store.delete(weights.chunks[0].key)
    with pytest.raises(NotFound, match="no longer kept"):
        publisher(store).rollback(TENANT, ADAPTER, to="v2")
    assert served_seed(store) == 3
    assert keys(store, "txn") == ()


def test_a_rollback_to_what_was_before_stops_when_that_changed_meanwhile(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    publish(store, 2)
    racing = RacingStore(store, lambda: publish(store, 3))
    with pytest.raises(Conflict, match="changed what"):
        publisher(racing).rollback(TENANT, ADAPTER)
    assert served_seed(store) == 3


def test_a_condemned_chunk_is_never_reused(store: MemoryStore) -> None:
    publish(store, 1)
    condemned = keys(store, "blob")
    publish(store, 2)
    store.put_new(layout.plan_key(TENANT, "a" * 32), Plan(condemned).encode())
    publish(store, 1, label="again")
    named = {
        chunk.key
        for file in Reader(store).head(TENANT, ADAPTER).active.files  # type: ignore[union-attr]
        for chunk in file.chunks
    }
    assert named.isdisjoint(condemned)


def test_the_intent_names_every_chunk_and_precedes_every_look_at_them(store: MemoryStore) -> None:
    watched = FaultyStore(store)
    publish(watched, 1)
    verbs = [operation.split("/")[0] + operation.split("/")[3] for operation in watched.operations]
    assert verbs.index("put_new v1txn") < verbs.index("list v1gc") < verbs.index("list v1blob")
    done = next(o for o in watched.operations if o.startswith("put_new") and "/txn/" in o)
    with pytest.raises(Killed):
        publish(FaultyStore(store, at=8), 2)
    (left,) = keys(store, "txn")
    assert done.endswith(".1")
    assert decode_intent(store.get(left)).slot == 2
    assert len(decode_intent(store.get(left)).digests) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"keys":1}', b"\xff"])
def test_a_plan_nobody_can_read_stops_the_publish(store: MemoryStore, body: bytes) -> None:
    store.put_new(layout.plan_key(TENANT, "a" * 32), body)
    with pytest.raises(IntegrityError):
        publish(store, 1)
    assert keys(store, "a") == ()


def test_a_store_without_checksums_is_read_back_in_full(store: MemoryStore) -> None:
    class NoChecksums(MemoryStore):
        damage = False

        def head(self, key: str) -> ObjectHead:
            return replace(super().head(key), sha256=None)

        def get(self, key: str) -> bytes:
            body = super().get(key)
            return b"x" + body[1:] if self.damage and "/blob/" in key else body

    plain = NoChecksums()
    publish(plain, 1)
    assert publish(plain, 2).bytes_reused > 0
    assert served_seed(plain) == 2
    plain.damage = True
    with pytest.raises(IntegrityError, match="did not read back"):
        publish(plain, 3)
    plain.damage = False
    assert served_seed(plain) == 2


def test_a_damaged_chunk_in_the_store_is_not_reused(store: MemoryStore) -> None:
    publish(store, 1)
    key = Reader(store).head(TENANT, ADAPTER).active.files[0].chunks[0].key  # type: ignore[union-attr]
    body = store.get(key)
    store.delete(key)
    store.put_new(key, b"x" + body[1:])
    publish(store, 2)
    assert served_seed(store) == 2

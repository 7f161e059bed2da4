"""What every ObjectStore promises. Subclass it with a `store` fixture giving an empty store."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

from adapter_store import layout
from adapter_store.errors import AlreadyExists, IntegrityError, NotFound
from adapter_store.objects import ObjectStore


class ObjectStoreContract:
    @pytest.mark.parametrize("size", [0, 1, 1000, 5 * 1024 * 1024])
    def test_an_object_reads_back_as_it_was_written(self, store: ObjectStore, size: int) -> None:
        body = (bytes(range(256)) * (size // 256 + 1))[:size]
        store.put_new("v1/a", body)
        assert store.get("v1/a") == body

    def test_what_was_never_written_is_not_found(self, store: ObjectStore) -> None:
        store.put_new("v1/ab", b"x")
        with pytest.raises(NotFound):
            store.get("v1/a")
        with pytest.raises(NotFound):
            store.head("v1/a")

    def test_an_object_larger_than_any_of_ours_is_refused(self, store: ObjectStore) -> None:
        store.put_new("v1/a", bytes(layout.CHUNK_BYTES))
        assert len(store.get("v1/a")) == layout.CHUNK_BYTES
        store.put_new("v1/b", bytes(layout.CHUNK_BYTES + 1))
        with pytest.raises(IntegrityError, match="so large"):
            store.get("v1/b")

    def test_put_new_never_overwrites_not_even_with_equal_bytes(self, store: ObjectStore) -> None:
        store.put_new("v1/a", b"first")
        for body in (b"second", b"first"):
            with pytest.raises(AlreadyExists):
                store.put_new("v1/a", body)
        assert store.get("v1/a") == b"first"

    def test_of_racing_creators_exactly_one_wins_and_its_bytes_stay(
        self, store: ObjectStore
    ) -> None:
        for number in range(3):
            key = f"v1/race/{number}"
            winners = _race(store, key, racers=4)
            assert len(winners) == 1
            assert store.get(key) == winners[0]

    def test_a_head_tells_size_digest_and_age(self, store: ObjectStore) -> None:
        before = time.time()
        store.put_new("v1/a", b"body")
        head = store.head("v1/a")
        assert (head.key, head.size) == ("v1/a", 4)
        assert head.sha256 in (None, hashlib.sha256(b"body").hexdigest())
        assert before - 2 <= head.modified <= time.time() + 2

    def test_an_object_is_listed_as_soon_as_it_is_written(self, store: ObjectStore) -> None:
        for number in range(10):
            store.put_new(f"v1/{number}", b"x")
            assert f"v1/{number}" in store.list("v1/").keys

    def test_pages_give_every_key_once_in_ascending_order(self, store: ObjectStore) -> None:
        keys = sorted(f"v1/t/{number * 37 % 11:02d}" for number in range(11))
        for key in reversed(keys):
            store.put_new(key, b"x")
        store.put_new("v1/u", b"x")
        seen: list[str] = []
        token = None
        while True:
            page = store.list("v1/t/", limit=4, token=token)
            assert len(page.keys) <= 4
            seen += page.keys
            token = page.next_token
            if token is None:
                break
        assert seen == keys

    def test_a_listing_of_nothing_is_empty(self, store: ObjectStore) -> None:
        store.put_new("v1/a", b"x")
        page = store.list("v1/b")
        assert (page.keys, page.folders, page.next_token) == ((), (), None)

    def test_a_prefix_matches_inside_a_name(self, store: ObjectStore) -> None:
        for key in ("v1/blob/ab.1", "v1/blob/ab.2", "v1/blob/ac.1"):
            store.put_new(key, b"x")
        assert store.list("v1/blob/ab.").keys == ("v1/blob/ab.1", "v1/blob/ab.2")

    def test_a_delimiter_folds_what_lies_deeper_into_folders(self, store: ObjectStore) -> None:
        for key in ("v1/a/ant/log/1", "v1/a/ant/log/2", "v1/a/bee/log/1", "v1/a/top"):
            store.put_new(key, b"x")
        page = store.list("v1/a/", delimiter="/")
        assert page.folders == ("v1/a/ant/", "v1/a/bee/")
        assert page.keys == ("v1/a/top",)

    def test_folders_come_in_pages_too(self, store: ObjectStore) -> None:
        for name in "abcde":
            store.put_new(f"v1/a/{name}/1", b"x")
            store.put_new(f"v1/a/{name}/2", b"x")
        seen: list[str] = []
        token = None
        while True:
            page = store.list("v1/a/", delimiter="/", limit=2, token=token)
            seen += page.folders
            token = page.next_token
            if token is None:
                break
        assert seen == [f"v1/a/{name}/" for name in "abcde"]

    def test_the_first_log_key_listed_is_the_newest(self, store: ObjectStore) -> None:
        for gen in (1, 2, 9, 10, 11, 100):
            store.put_new(layout.log_key("acme", "tone", gen), b"x")
            page = store.list(layout.log_prefix("acme", "tone"), limit=1)
            assert [layout.parse_log_key(key) for key in page.keys] == [gen]

    def test_a_deleted_object_is_gone_and_deleting_it_again_is_fine(
        self, store: ObjectStore
    ) -> None:
        store.put_new("v1/a", b"x")
        store.delete("v1/a")
        store.delete("v1/a")
        with pytest.raises(NotFound):
            store.get("v1/a")
        assert store.list("v1/").keys == ()


def _race(store: ObjectStore, key: str, *, racers: int) -> list[bytes]:
    """The bodies of those who were told that they created `key`."""
    start = threading.Barrier(racers)
    winners: list[bytes] = []

    def create(body: bytes) -> None:
        start.wait()
        try:
            store.put_new(key, body)
        except AlreadyExists:
            return
        winners.append(body)

    threads = [threading.Thread(target=create, args=(b"%d" % n,)) for n in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners

"""What is current, what a reference means, and what a reader refuses to believe."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from adapter_store.bases import list_bases, load_base, register_base
from adapter_store.errors import IntegrityError, NotFound, StoreUnavailable
from adapter_store.layout import AdapterRef, base_card_key, log_key, parse_ref
from adapter_store.memory import MemoryStore
from adapter_store.meter import MeteredStore
from adapter_store.objects import ListPage
from adapter_store.reader import Reader
from adapter_store.record import RecordKind
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.publishing import (
    ADAPTER,
    REF,
    TENANT,
    adapter,
    append,
    publish,
    publisher,
    served_seed,
    tombstone,
)


class ForgetfulStore(MemoryStore):
    """Hides log records above `newest`, as a store that went back in time would."""

    newest = 10**6

    def get(self, key: str) -> bytes:
        if "/log/" in key and int(key.rsplit("-", 1)[1]) > self.newest:
            raise NotFound(key)
        return super().get(key)


class ShortPages(MemoryStore):
    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return super().list(prefix, delimiter=delimiter, limit=min(limit, 2), token=token)


def test_a_cold_head_costs_three_requests_and_a_warm_one_a_single_request(
    store: MemoryStore,
) -> None:
    publish(store, 1)
    publish(store, 2)
    metered = MeteredStore(store)
    reader = Reader(metered)
    assert reader.head(TENANT, ADAPTER).gen == 2
    assert metered.requests == 3
    assert reader.head(TENANT, ADAPTER).gen == 2
    assert metered.requests == 4
    reader.resolve(REF, refresh=False)
    assert metered.requests == 4


def test_a_new_record_is_seen_by_the_next_refresh_and_not_without_one(store: MemoryStore) -> None:
    publish(store, 1)
    reader = Reader(store)
    assert reader.resolve(REF).gen == 1
    publish(store, 2)
    assert reader.resolve(REF, refresh=False).gen == 1
    assert reader.resolve(REF).gen == 2
    assert reader.known_gen(TENANT, ADAPTER) == 2


def test_a_known_generation_never_falls_even_when_the_store_goes_back() -> None:
    store = ForgetfulStore()
    publish(store, 1)
    publish(store, 2)
    reader = Reader(store)
    reader.head(TENANT, ADAPTER)
    store.newest = 1
    assert reader.head(TENANT, ADAPTER).gen == 2
    assert reader.resolve(REF).gen == 2
    # The control: a reader without memory does go back, so the store does lie.
    store.delete(log_key(TENANT, ADAPTER, 2))
    assert Reader(store).head(TENANT, ADAPTER).gen == 1


def test_of_many_adapters_those_asked_for_last_are_known_and_others_are_found_anew(
    store: MemoryStore,
) -> None:
    content = adapter(1)
    for number in range(6):
        publisher(store).publish(TENANT, f"n{number}", content)
    metered = MeteredStore(store)
    reader = Reader(metered, remembered=3)
    for number in range(6):
        assert reader.resolve(AdapterRef(TENANT, f"n{number}")).gen == 1
        assert reader.resolve(AdapterRef(TENANT, "n0"), refresh=False).gen == 1
        with pytest.raises(NotFound):
            reader.resolve(AdapterRef(TENANT, f"nobody{number}"))
    known = [n for n in range(6) if reader.known(TENANT, f"n{n}") is not None]
    assert known == [0, 4, 5]
    assert len(reader._checked) <= 3
    before = metered.requests
    reader.resolve(AdapterRef(TENANT, "n5"), refresh=False)
    assert metered.requests == before
    assert reader.resolve(AdapterRef(TENANT, "n1"), refresh=False).gen == 1
    assert metered.requests > before


def test_readers_on_several_threads_never_see_a_generation_fall(store: MemoryStore) -> None:
    publish(store, 1)
    reader = Reader(store)
    falls: list[tuple[int, int]] = []
    done = threading.Event()

    def watch() -> None:
        last = 0
        while not done.is_set():
            gen = reader.resolve(REF).gen
            if gen < last:
                falls.append((last, gen))
            last = gen

    threads = [threading.Thread(target=watch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seed in range(2, 10):
        publish(store, seed)
    done.set()
    for thread in threads:
        thread.join()
    assert falls == []
    assert reader.head(TENANT, ADAPTER).gen == 9


def test_a_record_with_another_parent_is_refused_and_the_old_one_stays(store: MemoryStore) -> None:
    publish(store, 1)
    reader = Reader(store)
    reader.head(TENANT, ADAPTER)
    append(store, parent="0" * 64)
    with pytest.raises(IntegrityError, match="another parent"):
        reader.head(TENANT, ADAPTER)
    assert reader.resolve(REF, refresh=False).gen == 1


@pytest.mark.parametrize("change", [{"adapter": "other"}, {"tenant": "other"}, {"gen": 7}])
def test_a_record_that_is_not_what_its_key_says_is_refused(
    store: MemoryStore, change: dict[str, str | int]
) -> None:
    publish(store, 1)
    head = Reader(store).head(TENANT, ADAPTER)
    moved = replace(head, gen=2, parent=head.digest())
    store.put_new(log_key(TENANT, ADAPTER, 2), replace(moved, **change).encode())  # type: ignore[arg-type]
    with pytest.raises(IntegrityError):
        Reader(store).head(TENANT, ADAPTER)


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"\x80\x04", b"[1]"])
def test_a_record_that_is_no_record_is_refused(store: MemoryStore, body: bytes) -> None:
    publish(store, 1)
    store.put_new(log_key(TENANT, ADAPTER, 2), body)
    with pytest.raises(IntegrityError):
        Reader(store).head(TENANT, ADAPTER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"fence":1', b'"fence":"1"'),
        (b'"attempt":1', b'"attempt":true'),
        (b'"label":"v1"', b'"label":1'),
        (b'"offset":0', b'"offset":"0"'),
        (b'"offset":0', b'"offset":null'),
        (b'"versions":[{', b'"versions":[1,{'),
        (b'"split":[]', b'"split":[{"version":null,"weight":1}]'),
        (b'"kind":"publish"', b'"kind":"other"'),
        (b'"format":1', b'"format":2'),
    ],
)
def test_a_record_with_a_value_of_the_wrong_type_is_refused(
    store: MemoryStore, old: bytes, new: bytes
) -> None:
    publish(store, 1)
    key = log_key(TENANT, ADAPTER, 1)
    body = store.get(key)
    assert old in body
    store.delete(key)
    store.put_new(key, body.replace(old, new))
    with pytest.raises(IntegrityError):
        Reader(store).head(TENANT, ADAPTER)


def test_a_pinned_version_resolves_cold_with_at_most_three_requests(store: MemoryStore) -> None:
    first = publish(store, 1, label="first")
    for seed in range(2, 6):
        publish(store, seed)
    for text in (f"{ADAPTER}@first", f"{ADAPTER}@sha256:{first.vdig}", f"{ADAPTER}@v5"):
        metered = MeteredStore(store)
        found = Reader(metered).resolve(parse_ref(text))
        assert metered.requests <= 3
        assert found.version.label == ("v5" if text.endswith("v5") else "first")
    metered = MeteredStore(store)
    reader = Reader(metered)
    reader.resolve(parse_ref(f"{ADAPTER}@first"))
    before = metered.requests
    assert reader.resolve(parse_ref(f"{ADAPTER}@first"), refresh=False).gen == 1
    assert metered.requests == before


def test_a_pinned_version_published_after_the_listing_is_still_found() -> None:
    class LateListing(MemoryStore):
        def list(self, prefix: str, **options: object) -> ListPage:
            return ListPage((self.head(log_key(TENANT, ADAPTER, 1)),), (), None)

    store = LateListing()
    plain = MemoryStore()
    publish(plain, 1)
    publish(plain, 2, label="new")
    for key in plain.list("").keys:
        store.put_new(key, plain.get(key))
    assert Reader(store).resolve(parse_ref(f"{ADAPTER}@new")).gen == 2


def test_a_version_rolled_back_to_resolves_to_its_newest_keys(store: MemoryStore) -> None:
    publish(store, 1)
    publish(store, 2)
    publisher(store).rollback(TENANT, ADAPTER, to="v1")
    publish(store, 3)
    assert Reader(store).resolve(parse_ref(f"{ADAPTER}@v1")).gen == 3
    assert served_seed(store) == 3


def test_unknown_adapters_and_versions_are_not_found(store: MemoryStore) -> None:
    with pytest.raises(NotFound) as caught:
        Reader(store).resolve(REF)
    assert caught.value.hint
    publish(store, 1)
    for text in (f"{ADAPTER}@nope", f"{ADAPTER}@sha256:{'0' * 64}"):
        with pytest.raises(NotFound) as caught:
            Reader(store).resolve(parse_ref(text))
        assert caught.value.hint


def test_after_a_tombstone_nothing_is_served_not_even_what_was_pinned(store: MemoryStore) -> None:
    publish(store, 1)
    tombstone(store)
    for _ in range(2):
        for ref in (REF, parse_ref(f"{ADAPTER}@v1")):
            with pytest.raises(NotFound):
                Reader(store).resolve(ref)
        append(store)
    publish(store, 1)
    assert served_seed(store) == 1


def test_history_comes_newest_first_and_stops_where_the_chain_breaks(store: MemoryStore) -> None:
    for seed in range(1, 5):
        publish(store, seed)
    reader = Reader(store)
    assert [record.gen for record in reader.history(TENANT, ADAPTER)] == [4, 3, 2, 1]
    other = replace(reader.record(TENANT, ADAPTER, 2), actor="mallory")
    store.delete(log_key(TENANT, ADAPTER, 2))
    with pytest.raises(IntegrityError, match="gone"):
        list(Reader(store).history(TENANT, ADAPTER))
    store.put_new(log_key(TENANT, ADAPTER, 2), other.encode())
    with pytest.raises(IntegrityError, match="another parent"):
        list(Reader(store).history(TENANT, ADAPTER))


def test_every_adapter_of_a_tenant_is_listed_and_no_others() -> None:
    store = ShortPages()
    names = [f"a{n}" for n in range(5)]
    for name in names:
        publisher(store).publish(TENANT, name, adapter(1))
    publisher(store).publish("elsewhere", "hidden", adapter(1))
    assert list(Reader(store).adapters(TENANT)) == names
    assert list(Reader(store).adapters("nobody")) == []


def test_an_unreachable_store_is_said_and_what_is_known_still_resolves(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(key: str) -> bytes:
        raise StoreUnavailable("down")

    publish(store, 1)
    reader = Reader(store)
    reader.head(TENANT, ADAPTER)
    monkeypatch.setattr(store, "get", down)
    with pytest.raises(StoreUnavailable):
        reader.resolve(REF)
    assert reader.resolve(REF, refresh=False).gen == 1


def test_a_base_card_is_written_once_and_read_back(store: MemoryStore) -> None:
    register_base(store, CARD)
    register_base(store, CARD)
    assert load_base(store, CARD.fingerprint) == CARD
    assert list_bases(store) == [CARD]
    with pytest.raises(IntegrityError, match="another card"):
        register_base(store, replace(CARD, name="other"))
    with pytest.raises(NotFound):
        load_base(store, "0" * 64)
    store.put_new(base_card_key("1" * 64), CARD.encode())
    with pytest.raises(IntegrityError):
        load_base(store, "1" * 64)


def test_a_rollback_says_so(store: MemoryStore) -> None:
    publish(store, 1)
    publish(store, 2)
    publisher(store).rollback(TENANT, ADAPTER)
    found = Reader(store).resolve(REF)
    assert (found.kind, found.gen, found.version.label) == (RecordKind.ROLLBACK, 3, "v1")

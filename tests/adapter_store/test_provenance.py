"""What a trust file makes of versions and publishers, and how an adapter recovers."""

from __future__ import annotations

import pytest

from adapter_store.draft import Author, fence_record
from adapter_store.errors import Untrusted
from adapter_store.layout import log_key, parse_ref
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from tests.adapter_store.forgeries import unsigned
from tests.adapter_store.publishing import ADAPTER, REF, TENANT, adapter, publish, publisher
from tests.adapter_store.signed import (
    Trust,
    forged,
    newest,
    plant,
    sign_and_publish,
    signer,
    trusted,
)


@pytest.fixture
def store(store: MemoryStore) -> MemoryStore:
    sign_and_publish(store, 1)
    return store


def test_publishing_goes_on_over_an_unsigned_fence(store: MemoryStore, trust: Trust) -> None:
    plant(store, forged(store))
    done = publisher(store, signer=signer(), verifier=trust).publish(TENANT, ADAPTER, adapter(2))
    assert Reader(store, verifier=trust).head(TENANT, ADAPTER).gen == done.gen == 3


def test_a_fence_in_the_first_slot_serves_nothing_and_stops_nobody(trust: Trust) -> None:
    store = MemoryStore()
    author = Author("e" * 32, 1, "mallory", "")
    plant(store, fence_record(None, author, tenant=TENANT, adapter=ADAPTER))
    done = sign_and_publish(store, 1)
    assert Reader(store, verifier=trust).head(TENANT, ADAPTER).gen == done.gen == 2


def test_an_adapter_with_no_trusted_record_is_untrusted_and_not_unknown(trust: Trust) -> None:
    store = MemoryStore()
    publish(store, 1)
    with pytest.raises(Untrusted, match="not signed"):
        Reader(store, verifier=trust).resolve(REF)


def test_a_version_moved_about_keeps_its_signature(store: MemoryStore, trust: Trust) -> None:
    sign_and_publish(store, 2, key="alice")
    trust.change(trusted(), trusted("bob"))
    by_bob = publisher(store, signer=signer("bob"), verifier=trust)
    rolled = by_bob.rollback(TENANT, ADAPTER, to="v1")
    head = Reader(store, verifier=trust).head(TENANT, ADAPTER)
    assert head.gen == rolled.gen
    assert head.active is not None
    assert [entry["key"] for entry in head.active.signatures] == [signer().key_id]
    assert [entry["key"] for entry in head.signatures] == [signer("bob").key_id]
    by_bob.stage(TENANT, ADAPTER, adapter(3), label="canary")
    by_bob.split(TENANT, ADAPTER, {"v1": 9, "canary": 1})
    by_bob.activate(TENANT, ADAPTER)
    by_bob.delete(TENANT, ADAPTER)
    by_bob.rollback(TENANT, ADAPTER, to="v2")
    assert Reader(store, verifier=trust).head(TENANT, ADAPTER).gen == 8


def test_revoking_who_vouched_for_a_version_refuses_it_under_any_later_record(
    store: MemoryStore, trust: Trust
) -> None:
    sign_and_publish(store, 2, key="bob")
    trust.change(trusted(), trusted("bob"))
    publisher(store, signer=signer()).rollback(TENANT, ADAPTER, to="v1")
    publisher(store, signer=signer()).rollback(TENANT, ADAPTER, to="v2")
    reader = Reader(store, verifier=trust)
    assert reader.resolve(REF).gen == 4
    assert reader.resolve(parse_ref(f"{ADAPTER}@v2")).version.label == "v2"
    trust.change(trusted(), trusted("bob", revoked=True))
    for each in (reader, Reader(store, verifier=trust)):
        assert (each.resolve(REF).gen, each.resolve(REF).version.label) == (3, "v1")
        with pytest.raises(Untrusted, match="revoked"):
            each.head(TENANT, ADAPTER)
    trust.change(trusted("carol"))
    with pytest.raises(Untrusted):
        reader.resolve(REF)
    trust.change(trusted(), trusted("bob"))
    assert reader.resolve(REF).gen == 4


def test_a_pinned_version_is_believed_only_from_a_trusted_record(
    store: MemoryStore, trust: Trust
) -> None:
    trust.change(trusted(), trusted("bob"))
    sign_and_publish(store, 2, key="bob")
    sign_and_publish(store, 3)
    pinned = parse_ref(f"{ADAPTER}@v2")
    assert Reader(store, verifier=trust).resolve(pinned).gen == 2
    trust.change(trusted())
    reader = Reader(store, verifier=trust)
    assert reader.resolve(REF).gen == 3
    with pytest.raises(Untrusted):
        reader.resolve(pinned)


def test_a_slot_that_came_damaged_once_is_believed_when_it_is_read_whole(trust: Trust) -> None:
    class Flaky(MemoryStore):
        damage = 0

        def get(self, key: str) -> bytes:
            body = super().get(key)
            if self.damage and key == log_key(TENANT, ADAPTER, 2):
                self.damage -= 1
                return body[:-1]
            return body

    store = Flaky()
    sign_and_publish(store, 1)
    reader = Reader(store, verifier=trust)
    reader.head(TENANT, ADAPTER)
    sign_and_publish(store, 2)
    store.damage = 1
    assert reader.resolve(REF).gen == 1
    assert reader.resolve(REF).gen == 2
    assert reader.refused(TENANT, ADAPTER) is None


def test_a_publisher_with_a_trust_file_does_not_build_on_what_it_does_not_believe(
    store: MemoryStore, trust: Trust
) -> None:
    plant(store, unsigned(store))
    with pytest.raises(Untrusted):
        publisher(store, signer=signer(), verifier=trust).publish(TENANT, ADAPTER, adapter(2))
    assert newest(store)[0] == 2


def test_a_publisher_with_a_key_alone_makes_nobody_believe_what_it_only_took_over(
    store: MemoryStore, trust: Trust
) -> None:
    plant(store, unsigned(store))
    publisher(store, signer=signer()).stage(TENANT, ADAPTER, adapter(2))
    reader = Reader(store, verifier=trust)
    assert reader.resolve(REF).gen == 1
    with pytest.raises(Untrusted, match="version"):
        reader.head(TENANT, ADAPTER)


def test_the_same_push_with_a_key_signs_what_nobody_signed_before(trust: Trust) -> None:
    store = MemoryStore()
    publish(store, 1)
    assert not sign_and_publish(store, 1).unchanged
    assert sign_and_publish(store, 1).unchanged
    assert sign_and_publish(store, 1).gen == 2
    again = publisher(store, signer=signer("bob"), verifier=trust).publish(
        TENANT, ADAPTER, adapter(1)
    )
    assert again.unchanged
    assert Reader(store, verifier=trust).head(TENANT, ADAPTER).gen == 2


def test_history_with_a_trust_file_holds_only_what_is_trusted(
    store: MemoryStore, trust: Trust
) -> None:
    plant(store, unsigned(store))
    plant(store, forged(store))
    reader = Reader(store, verifier=trust)
    assert [record.gen for record in reader.history(TENANT, ADAPTER)] == [1]
    assert [record.gen for record in Reader(store).history(TENANT, ADAPTER)] == [3, 2, 1]

"""A reader with a trust file: what it refuses, what it keeps, and how an adapter recovers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from adapter_store.draft import Author, fence_record
from adapter_store.errors import IntegrityError, Untrusted
from adapter_store.layout import CHUNK_BYTES, log_key, parse_ref
from adapter_store.log import MAX_DESCENT, MAX_REREAD
from adapter_store.memory import MemoryStore
from adapter_store.meter import MeteredStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind, SplitArm, VersionRef
from adapter_store.signing import Verifier
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
def store() -> MemoryStore:
    store = MemoryStore()
    sign_and_publish(store, 1)
    return store


@pytest.fixture
def trust() -> Trust:
    return Trust(trusted())


def evil(store: MemoryStore) -> VersionRef:
    """Content of the attacker's, whole in the store: published to another adapter."""
    if not store.list(log_key(TENANT, "elsewhere", 1)).keys:
        publisher(store).publish(TENANT, "elsewhere", adapter(9))
    version = Reader(store).resolve(parse_ref("elsewhere")).version
    return version


def sealed_by(name: str, *, vouch: bool = True) -> Callable[[Record], Record]:
    def seal(record: Record) -> Record:
        digests = {version.vdig for version in record.contents()} if vouch else set()
        return signer(name).sign(record, vouched=digests)

    return seal


def unsigned(store: MemoryStore) -> Record:
    return forged(store, kind=RecordKind.PUBLISH, active=evil(store))


def by_a_stranger(store: MemoryStore) -> Record:
    return sealed_by("mallory")(unsigned(store))


def by_a_stranger_naming_alice(store: MemoryStore) -> Record:
    made = by_a_stranger(store)
    named = tuple({**entry, "key": signer().key_id} for entry in made.signatures)
    return replace(made, signatures=named)


def with_the_signatures_of_the_record_before(store: MemoryStore) -> Record:
    head = newest(store)[2]
    assert head is not None
    return replace(unsigned(store), signatures=head.signatures)


def in_scope_for_another_adapter(store: MemoryStore) -> Record:
    return sealed_by("bob")(unsigned(store))


def laundered_content(store: MemoryStore) -> Record:
    """Signed by alice as a whole, the content by nobody: she never had it in hand."""
    return sealed_by("alice", vouch=False)(unsigned(store))


def staged_behind_her_back(store: MemoryStore) -> Record:
    return sealed_by("alice", vouch=False)(forged(store, kind=RecordKind.STAGE, staged=evil(store)))


def split_behind_her_back(store: MemoryStore) -> Record:
    head = newest(store)[2]
    assert head is not None
    assert head.active is not None
    arms = (SplitArm(1, head.active), SplitArm(99, evil(store)))
    return sealed_by("alice", vouch=False)(forged(store, kind=RecordKind.SPLIT, split=arms))


def over_another_parent(store: MemoryStore) -> Record:
    return sealed_by("alice")(forged(store, kind=RecordKind.PUBLISH, parent="0" * 64))


def fence_with_other_content(store: MemoryStore) -> Record:
    return forged(store, active=evil(store))


def fence_with_a_higher_fence(store: MemoryStore) -> Record:
    return forged(store, fence=10**9)


def fence_with_another_index(store: MemoryStore) -> Record:
    return forged(store, versions=())


def fence_that_is_signed(store: MemoryStore) -> Record:
    return sealed_by("alice")(forged(store))


ATTACKS = [
    unsigned,
    by_a_stranger,
    by_a_stranger_naming_alice,
    with_the_signatures_of_the_record_before,
    in_scope_for_another_adapter,
    laundered_content,
    staged_behind_her_back,
    split_behind_her_back,
    fence_with_other_content,
    fence_with_a_higher_fence,
    fence_with_another_index,
    fence_that_is_signed,
]
ELSEWHERE = trusted("bob", adapters=("elsewhere",))


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_no_trusted_key_signed_is_refused_and_the_last_good_one_kept(
    store: MemoryStore, attack: Callable[[MemoryStore], Record]
) -> None:
    trust, alarms = Trust(trusted(), ELSEWHERE), list[Untrusted]()
    warm = Reader(store, verifier=trust, on_refused=alarms.append)
    warm.head(TENANT, ADAPTER)
    plant(store, attack(store))
    cold = Reader(store, verifier=trust)
    for reader in (warm, cold):
        for _ in range(2):
            assert reader.resolve(REF).gen == 1
            assert reader.current(TENANT, ADAPTER).gen == 1
            with pytest.raises(Untrusted):
                reader.head(TENANT, ADAPTER)
            assert reader.resolve(REF, refresh=False).gen == 1
        assert reader.refused(TENANT, ADAPTER) is not None
    assert len(alarms) == 1


def test_a_signed_record_over_another_parent_is_refused_by_who_knows_the_parent(
    store: MemoryStore, trust: Trust
) -> None:
    reader = Reader(store, verifier=trust)
    reader.head(TENANT, ADAPTER)
    plant(store, over_another_parent(store))
    assert reader.resolve(REF).gen == 1
    with pytest.raises(Untrusted, match="another parent"):
        reader.head(TENANT, ADAPTER)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_control_a_reader_without_a_trust_file_believes_each_attack(
    store: MemoryStore, attack: Callable[[MemoryStore], Record]
) -> None:
    plant(store, attack(store))
    assert Reader(store).head(TENANT, ADAPTER).gen == 2


class NoScope(Trust):
    """A seeded bug: any key of the file may speak for anything."""

    def check(self, record: Record) -> None:
        whole = {k: replace(key, adapters=("*",)) for k, key in self.keys.items()}
        Trust(*whole.values()).check(record)


class RecordOnly(Trust):
    """A seeded bug: versions are not looked at."""

    def check(self, record: Record) -> None:
        bare = replace(record, active=None, staged=None, split=(), signatures=())
        super().check(signer().sign(bare, vouched=()))
        if record.signatures[0]["key"] not in self.keys:
            raise Untrusted("unknown")


@pytest.mark.parametrize(
    ("attack", "bug"),
    [
        (in_scope_for_another_adapter, NoScope),
        (laundered_content, RecordOnly),
        (staged_behind_her_back, RecordOnly),
        (split_behind_her_back, RecordOnly),
    ],
)
def test_the_control_a_verifier_that_skips_a_check_lets_the_attack_through(
    store: MemoryStore, attack: Callable[[MemoryStore], Record], bug: type[Trust]
) -> None:
    plant(store, attack(store))
    seeded: Verifier = bug(trusted(), ELSEWHERE)
    assert Reader(store, verifier=seeded).head(TENANT, ADAPTER).gen == 2


def test_a_record_of_another_adapter_tenant_or_slot_cannot_be_replayed(
    store: MemoryStore, trust: Trust
) -> None:
    sign_and_publish(store, 2, name="other")
    sign_and_publish(store, 3, name="other")
    other = Reader(store, verifier=trust).head(TENANT, "other")
    first = Reader(store).record(TENANT, ADAPTER, 1)
    digest = first.digest()
    for replayed in (
        other,
        replace(other, adapter=ADAPTER, parent=digest),
        replace(first, gen=2, parent=digest),
        replace(first, tenant="acme", gen=2, parent=digest),
    ):
        copy = MemoryStore()
        for key in store.list("").keys:
            copy.put_new(key, store.get(key))
        copy.put_new(log_key(TENANT, ADAPTER, 2), replayed.encode())
        reader = Reader(copy, verifier=trust)
        assert reader.resolve(REF).gen == 1
        assert reader.refused(TENANT, ADAPTER) is not None


@pytest.mark.parametrize("garbage", [b"garbage", bytes(CHUNK_BYTES + 1)], ids=["short", "huge"])
def test_garbage_and_junk_in_the_log_do_not_stop_a_reader(
    store: MemoryStore, trust: Trust, garbage: bytes
) -> None:
    warm = Reader(store, verifier=trust)
    warm.head(TENANT, ADAPTER)
    store.put_new(log_key(TENANT, ADAPTER, 2), garbage)
    store.put_new(log_key(TENANT, ADAPTER, 2**62), b"far away")
    store.put_new(f"v1/t/{TENANT}/a/{ADAPTER}/log/!", b"junk")
    for reader in (warm, Reader(store, verifier=trust)):
        assert reader.resolve(REF).gen == 1
        with pytest.raises(Untrusted, match="no record"):
            reader.head(TENANT, ADAPTER)
    with pytest.raises(IntegrityError):
        Reader(store).head(TENANT, ADAPTER)


def test_a_fence_without_a_signature_counts_only_right_above_what_it_repeats(
    store: MemoryStore, trust: Trust
) -> None:
    warm = Reader(store, verifier=trust)
    warm.head(TENANT, ADAPTER)
    for gen in (2, 3):
        plant(store, forged(store))
        cold = Reader(store, verifier=trust)
        assert [r.head(TENANT, ADAPTER).gen for r in (warm, cold)] == [gen, gen]
        assert cold.resolve(REF).version == warm.resolve(REF).version
    plant(store, unsigned(store))
    plant(store, forged(store))
    for reader in (warm, Reader(store, verifier=trust)):
        assert reader.resolve(REF).gen == 3
        with pytest.raises(Untrusted, match="fence"):
            reader.head(TENANT, ADAPTER)


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


def test_an_index_that_points_a_label_at_other_content_is_refused(store: MemoryStore) -> None:
    sign_and_publish(store, 2)
    _, _, head = newest(store)
    assert head is not None
    entry = replace(head.versions[1], label="v1")
    plant(store, forged(store, kind=RecordKind.PUBLISH, versions=(entry,)))
    with pytest.raises(IntegrityError, match="lacks version 'v1'"):
        Reader(store).resolve(parse_ref(f"{ADAPTER}@v1"))


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


def test_many_refused_records_cost_a_bounded_number_of_requests(
    store: MemoryStore, trust: Trust
) -> None:
    metered = MeteredStore(store)
    reader = Reader(metered, verifier=trust)
    reader.head(TENANT, ADAPTER)
    for _ in range(MAX_REREAD + 5):
        plant(store, unsigned(store))
    reader.resolve(REF)
    before = metered.requests
    reader.resolve(REF)
    assert metered.requests - before == 1
    for _ in range(MAX_DESCENT):
        plant(store, unsigned(store))
    assert reader.resolve(REF).gen == 1
    metered = MeteredStore(store)
    with pytest.raises(Untrusted):
        Reader(metered, verifier=trust).resolve(REF)
    assert metered.requests <= MAX_DESCENT + 2


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

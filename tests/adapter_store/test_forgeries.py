"""A reader with a trust file believes no forged record, and keeps what it believed before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from adapter_store.errors import IntegrityError, Untrusted
from adapter_store.layout import CHUNK_BYTES, log_key, parse_ref
from adapter_store.log import MAX_DESCENT, MAX_REREAD
from adapter_store.memory import MemoryStore
from adapter_store.meter import MeteredStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind
from adapter_store.signing import Verifier
from tests.adapter_store.forgeries import (
    ATTACKS,
    in_scope_for_another_adapter,
    laundered_content,
    over_another_parent,
    split_behind_her_back,
    staged_behind_her_back,
    unsigned,
)
from tests.adapter_store.publishing import ADAPTER, REF, TENANT
from tests.adapter_store.signed import (
    Trust,
    forged,
    newest,
    plant,
    sign_and_publish,
    signer,
    trusted,
)

ELSEWHERE = trusted("bob", adapters=("elsewhere",))


@pytest.fixture
def store(store: MemoryStore) -> MemoryStore:
    sign_and_publish(store, 1)
    return store


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


def test_an_index_that_points_a_label_at_other_content_is_refused(store: MemoryStore) -> None:
    sign_and_publish(store, 2)
    _, _, head = newest(store)
    assert head is not None
    entry = replace(head.versions[1], label="v1")
    plant(store, forged(store, kind=RecordKind.PUBLISH, versions=(entry,)))
    with pytest.raises(IntegrityError, match="lacks version 'v1'"):
        Reader(store).resolve(parse_ref(f"{ADAPTER}@v1"))


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

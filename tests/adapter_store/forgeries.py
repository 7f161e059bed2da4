"""Records that whoever can write to the bucket may put on top of a log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adapter_store.layout import log_key, parse_ref
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind, SplitArm, VersionRef
from tests.adapter_store.publishing import TENANT, adapter, publisher
from tests.adapter_store.signed import forged, newest, signer


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

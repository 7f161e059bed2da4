"""Each kind of damage is found under its own name, and only that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapter_store import layout
from adapter_store.bases import register_base
from adapter_store.errors import StoreRefused
from adapter_store.findings import Finding, Kind, Severity, Summary
from adapter_store.fsck import Examination, examine
from adapter_store.intent import Intent, Plan
from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectStore
from adapter_store.pins import pin
from adapter_store.reader import Reader
from adapter_store.record import RecordKind, canonical_json
from adapter_store.s3 import S3Store
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.collecting import Calendar, collect, dated_store, everything
from tests.adapter_store.publishing import (
    ADAPTER,
    REF,
    TENANT,
    adapter,
    append,
    publish,
    publisher,
    stage,
    tombstone,
)
from tests.adapter_store.signed import Trust, sign_and_publish, trusted


def healthy() -> tuple[MemoryStore, Calendar]:
    """Three generations, the last one staging content; another adapter; one pin."""
    store, calendar = dated_store()
    register_base(store, CARD)
    publish(store, 1)
    publish(store, 2)
    stage(store, 3)
    publisher(store).publish(TENANT, "other", adapter(4))
    pin(store, Reader(store).resolve(replace(REF, label="v1")))
    calendar.pass_days(1)
    return store, calendar


def found(store: ObjectStore, **options: Any) -> tuple[list[Finding], Summary]:
    examination = Examination(store, TENANT, **options)
    return list(examination), examination.summary


def test_a_healthy_store_has_no_findings() -> None:
    store, _ = healthy()
    before = store.list("").keys
    findings, summary = found(store)
    assert findings == []
    assert (summary.adapters, summary.records, summary.pins) == (2, 4, 1)
    assert (summary.live_chunks, summary.bytes_read) == (5, 0)
    assert summary.chunks == len(everything(store, "blob"))
    assert store.list("").keys == before


def chunk_of(store: ObjectStore, label: str) -> str:
    """The chunk of a version that no other version has."""
    version = Reader(store).resolve(replace(REF, label=label)).version
    return next(f for f in version.files if f.name.endswith("safetensors")).chunks[0].key


def rewrite(store: MemoryStore, key: str, change: Callable[[bytes], bytes]) -> str:
    """What a store does that breaks its promises."""
    body = store.get(key)
    store.delete(key)
    store.put_new(key, change(body))
    return key


def lose_the_active_chunk(store: MemoryStore) -> str:
    key = chunk_of(store, "v2")
    store.delete(key)
    return key


def lose_the_staged_chunk(store: MemoryStore) -> str:
    key = chunk_of(store, "v3")
    store.delete(key)
    return key


def lose_the_pinned_chunk(store: MemoryStore) -> str:
    key = chunk_of(store, "v1")
    store.delete(key)
    return layout.blob_prefix(TENANT, layout.parse_blob_key(key))


def cut_a_chunk(store: MemoryStore) -> str:
    return rewrite(store, chunk_of(store, "v2"), lambda body: body[:-1])


def flip_a_byte(store: MemoryStore) -> str:
    return rewrite(store, chunk_of(store, "v2"), lambda body: body[:-1] + b"\xee")


def damage_a_record(store: MemoryStore) -> str:
    return rewrite(store, layout.log_key(TENANT, "other", 1), lambda body: body[:-1])


def move_a_record(store: MemoryStore) -> str:
    key = layout.log_key(TENANT, "another", 1)
    store.put_new(key, store.get(layout.log_key(TENANT, "other", 1)))
    return key


def lose_a_record(store: MemoryStore) -> str:
    key = layout.log_key(TENANT, ADAPTER, 2)
    store.delete(key)
    return key


def lose_the_first_record(store: MemoryStore) -> str:
    key = layout.log_key(TENANT, ADAPTER, 1)
    store.delete(key)
    return key


def break_the_chain(store: MemoryStore) -> str:
    key = layout.log_key(TENANT, ADAPTER, 1)
    return rewrite(store, key, lambda body: body.replace(b'"actor":"test"', b'"actor":"evil"'))


def lose_the_base_card(store: MemoryStore) -> str:
    key = layout.base_card_key(CARD.fingerprint)
    store.delete(key)
    return key


def damage_a_base_card(store: MemoryStore) -> str:
    key = layout.base_card_key("e" * 64)
    store.put_new(key, b"{}")
    return key


def swap_a_base_card(store: MemoryStore) -> str:
    key = layout.base_card_key("e" * 64)
    store.put_new(key, CARD.encode())
    return key


def damage_a_pin(store: MemoryStore) -> str:
    (key,) = everything(store, "pin")
    return rewrite(store, key, lambda body: body[:-1])


def damage_an_intent(store: MemoryStore) -> str:
    key = layout.intent_key(TENANT, "a" * 32, 1)
    store.put_new(key, b"?")
    return key


def leave_a_dead_intent(store: MemoryStore) -> str:
    key = layout.intent_key(TENANT, "a" * 32, 1)
    store.put_new(key, Intent(ADAPTER, 1, ()).encode())
    return key


def leave_an_open_intent(store: MemoryStore) -> str:
    key = layout.intent_key(TENANT, "a" * 32, 1)
    store.put_new(key, Intent(ADAPTER, 4, ()).encode())
    return key


def damage_a_plan(store: MemoryStore) -> str:
    key = layout.plan_key(TENANT, "a" * 32)
    store.put_new(key, canonical_json({"keys": [1]}))
    return key


def leave_a_plan(store: MemoryStore) -> str:
    key = layout.plan_key(TENANT, "a" * 32)
    store.put_new(key, Plan(("gone", chunk_of(store, "v2"))).encode())
    return key


def leave_a_stray_chunk(store: MemoryStore) -> str:
    key = f"{layout.blobs_prefix(TENANT)}notes.txt"
    store.put_new(key, b"mine")
    return key


def leave_a_stray_record(store: MemoryStore) -> str:
    key = f"{layout.log_prefix(TENANT, 'other')}notes"
    store.put_new(key, b"mine")
    return key


def leave_an_orphan(store: MemoryStore) -> str:
    key = layout.blob_key(TENANT, "d" * 64, "e" * 32, 1)
    store.put_new(key, b"four")
    return key


SEEDED: tuple[tuple[Callable[[MemoryStore], str], Kind], ...] = (
    (lose_the_active_chunk, Kind.CHUNK_MISSING),
    (lose_the_staged_chunk, Kind.CHUNK_MISSING),
    (lose_the_pinned_chunk, Kind.CHUNK_MISSING),
    (cut_a_chunk, Kind.CHUNK_SIZE),
    (flip_a_byte, Kind.CHUNK_DAMAGED),
    (damage_a_record, Kind.RECORD_DAMAGED),
    (move_a_record, Kind.RECORD_MISPLACED),
    (lose_a_record, Kind.LOG_GAP),
    (lose_the_first_record, Kind.LOG_GAP),
    (break_the_chain, Kind.CHAIN_BROKEN),
    (lose_the_base_card, Kind.BASE_MISSING),
    (damage_a_base_card, Kind.BASE_DAMAGED),
    (swap_a_base_card, Kind.BASE_DAMAGED),
    (damage_a_pin, Kind.PIN_DAMAGED),
    (damage_an_intent, Kind.INTENT_DAMAGED),
    (leave_a_dead_intent, Kind.INTENT_STALE),
    (leave_an_open_intent, Kind.INTENT_STALE),
    (damage_a_plan, Kind.PLAN_DAMAGED),
    (leave_a_plan, Kind.PLAN_STALE),
    (leave_a_stray_chunk, Kind.STRAY),
    (leave_a_stray_record, Kind.STRAY),
    (leave_an_orphan, Kind.ORPHAN),
)


@pytest.mark.parametrize(("seed", "kind"), SEEDED, ids=lambda value: getattr(value, "__name__", ""))
def test_each_damage_is_found_by_its_name(seed: Callable[[MemoryStore], str], kind: Kind) -> None:
    store, calendar = healthy()
    key = seed(store)
    calendar.pass_days(1)
    findings, summary = found(store)
    assert {(f.kind, f.key) for f in findings if f.kind is not Kind.ORPHAN} == (
        {(kind, key)} if kind is not Kind.ORPHAN else set()
    )
    assert (kind, key) in {(f.kind, f.key) for f in findings}
    assert all(f.message and f.severity is f.kind.severity for f in findings)
    assert sum(summary.found.values()) == len(findings)


def test_every_kind_is_seeded() -> None:
    assert {kind for _, kind in SEEDED} | {Kind.RECORD_UNTRUSTED} == set(Kind)


class BelievesItself(MemoryStore):
    """Reports the checksum it verified when the bytes came, whatever became of them."""

    def rot(self, key: str) -> None:
        body = bytearray(self._bodies[key])
        body[-1] ^= 1
        self._bodies[key] = bytes(body)


def test_bytes_that_rotted_below_a_checksum_are_found_by_reading_them() -> None:
    store = BelievesItself()
    register_base(store, CARD)
    publish(store, 1)
    key = chunk_of(store, "v1")
    store.rot(key)
    assert found(store)[0] == []
    findings, summary = found(store, deep=True)
    assert [(f.kind, f.key) for f in findings] == [(Kind.CHUNK_DAMAGED, key)]
    assert summary.bytes_read == sum(len(body) for body in adapter(1).files.values())


def test_what_a_publisher_at_work_has_written_is_no_finding() -> None:
    store, _ = healthy()
    key = leave_an_orphan(store)
    intent = Intent(ADAPTER, 4, (layout.parse_blob_key(key),))
    store.put_new(layout.intent_key(TENANT, "a" * 32, 1), intent.encode())
    leave_a_plan(store)
    assert found(store)[0] == []


def test_versions_that_were_collected_and_a_deleted_adapter_are_no_finding() -> None:
    store, _ = healthy()
    publish(store, 5)
    tombstone(store)
    collect(store)
    assert found(store)[0] == []


def test_a_log_that_grows_while_its_chunks_are_collected_is_looked_at_again() -> None:
    store, _ = healthy()

    class Busy(MemoryStore):
        def head(self, key: str) -> Any:
            if "/blob/" in key and "busy" not in vars(self):
                self.busy = True
                publish(store, 5)
                collect(store)
            return store.head(key)

        def __getattribute__(self, name: str) -> Any:
            if name in ("get", "list", "put_new", "delete"):
                return getattr(store, name)
            return super().__getattribute__(name)

    assert [f for f in found(Busy(), parallel=1)[0] if f.severity is Severity.ERROR] == []


def test_a_forged_record_is_named_and_the_trusted_one_below_it_examined() -> None:
    store = MemoryStore()
    register_base(store, CARD)
    sign_and_publish(store, 1)
    key = chunk_of(store, "v1")
    forged = append(store, kind=RecordKind.TOMBSTONE, active=None)
    store.delete(key)
    findings, _ = found(store, verifier=Trust(trusted()))
    top = layout.log_key(TENANT, ADAPTER, forged.gen)
    assert {(f.kind, f.key) for f in findings} == {
        (Kind.RECORD_UNTRUSTED, top),
        (Kind.CHUNK_MISSING, key),
    }


def test_whoever_may_only_read_can_examine_too() -> None:
    store, _ = healthy()
    leave_a_dead_intent(store)

    class ReadOnly(MemoryStore):
        def put_new(self, key: str, body: bytes) -> None:
            raise StoreRefused("read only")

    frozen = ReadOnly()
    frozen._bodies, frozen._heads = store._bodies, store._heads
    assert found(frozen)[0] == []


@pytest.mark.services
def test_300_adapters_on_a_real_store_are_examined_and_the_damaged_one_is_named(
    s3_store: S3Store,
) -> None:
    register_base(s3_store, CARD)
    publish(s3_store, 1)
    template = Reader(s3_store).head(TENANT, ADAPTER)
    for number in range(299):
        name = f"voice-{number}"
        record = replace(template, adapter=name)
        s3_store.put_new(layout.log_key(TENANT, name, 1), record.encode())
    lost = Reader(s3_store).resolve(replace(REF, label="v1")).version
    publisher(s3_store).publish(TENANT, "voice-150", adapter(2))
    examination = examine(s3_store, TENANT, deep=True)
    assert list(examination) == []
    summary = examination.summary
    assert (summary.adapters, summary.records) == (300, 301)
    assert summary.bytes_read >= 300 * lost.bytes // 2
    key = chunk_of_other(s3_store, "voice-150")
    s3_store.delete(key)
    assert [(f.kind, f.key) for f in examine(s3_store, TENANT)] == [(Kind.CHUNK_MISSING, key)]


def chunk_of_other(store: ObjectStore, name: str) -> str:
    version = Reader(store).resolve(replace(REF, adapter=name)).version
    return next(f for f in version.files if f.name.endswith("safetensors")).chunks[0].key

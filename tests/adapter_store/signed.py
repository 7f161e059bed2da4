"""Publishers with keys, and attackers without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapter_store.commit import Published
from adapter_store.draft import Author, fence_record
from adapter_store.layout import log_key
from adapter_store.log import Log
from adapter_store.objects import ObjectStore
from adapter_store.provenance import KeySigner, check_record, check_version
from adapter_store.record import Record, VersionRef
from adapter_store.trust import TrustedKey
from tests.adapter_store.publishing import ADAPTER, TENANT, adapter, publisher


@cache
def signer(name: str = "alice") -> KeySigner:
    """A key of that name; always the same one."""
    return KeySigner(Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"-")))


def trusted(name: str = "alice", **changes: Any) -> TrustedKey:
    key = signer(name)
    whole: dict[str, Any] = {
        "id": key.key_id,
        "public": key.public,
        "name": name,
        "tenants": ("*",),
        "adapters": ("*",),
    }
    return TrustedKey(**{**whole, **changes})


class Trust:
    """A Verifier whose keys a test may change."""

    def __init__(self, *keys: TrustedKey) -> None:
        self.epoch = 0
        self.keys: Mapping[str, TrustedKey] = {}
        self.change(*keys)

    def change(self, *keys: TrustedKey) -> None:
        self.epoch += 1
        self.keys = {key.id: key for key in keys}

    def check(self, record: Record) -> None:
        check_record(record, self.keys)

    def check_version(self, record: Record, version: VersionRef) -> None:
        check_version(record, version, self.keys)


def sign_and_publish(
    store: ObjectStore, seed: int, *, key: str = "alice", name: str = ADAPTER, **options: Any
) -> Published:
    return publisher(store, signer=signer(key)).publish(TENANT, name, adapter(seed), **options)


def newest(store: ObjectStore, name: str = ADAPTER) -> tuple[int, str, Record | None]:
    """Generation, digest and record of the topmost slot, whatever it holds."""
    log = Log(store, None, refused=lambda *said: None)
    gen = 1
    while store.list(log_key(TENANT, name, gen)).keys:
        gen += 1
    if gen == 1:
        return 0, "", None
    seen = log.read(TENANT, name, gen - 1)
    return seen.gen, seen.digest, seen.record


def plant(store: ObjectStore, record: Record) -> Record:
    """What somebody who can write to the bucket can do."""
    store.put_new(log_key(record.tenant, record.adapter, record.gen), record.encode())
    return record


def forged(store: ObjectStore, **changes: Any) -> Record:
    """An attacker's unsigned record for the next slot: what the newest one says, changed."""
    gen, digest, record = newest(store)
    assert record is not None
    made = fence_record(
        record, Author("e" * 32, 1, "mallory", ""), tenant=TENANT, adapter=record.adapter
    )
    return replace(made, **{"gen": gen + 1, "parent": digest, **changes})

"""What signatures are over, and what whoever makes and checks them promises.

Two statements are signed, each as a DSSE envelope whose payload is rebuilt from the record
instead of stored again (https://github.com/secure-systems-lab/dsse, pre-authentication encoding):

version   {tenant, adapter, label, vdig, gen, time}: a key's holder had these bytes in hand and
          publishes them under this label of this adapter. It lies in the VersionRef and goes
          wherever that goes: a rollback, a staging, a split, a fence record carry it along and
          never make one.
record    the canonical bytes of the whole record without its `signatures`: what is served from
          this generation on, over exactly this parent.

A record is to be trusted when a key that may speak for its tenant and adapter signed it, and each
version in it. A fence record is written by whoever finds a slot open, collectors without a key
among them: it needs no signature, and says nothing but what the trusted record below it says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from adapter_store.record import Record, RecordKind, VersionRef, canonical_json

RECORD_PAYLOAD = "application/vnd.lorapool.record.v1+json"
VERSION_PAYLOAD = "application/vnd.lorapool.version.v1+json"


class Signer(Protocol):
    """One private key at work."""

    def sign(self, record: Record, *, vouched: Collection[str]) -> Record:
        """`record` with this key's signature over it and over its versions in `vouched`.

        `vouched` are digests of content whose bytes the caller has checked itself. What a record
        takes over from older ones keeps the signatures it has, and gets none.
        """
        ...

    def has_signed(self, record: Record) -> bool:
        """Whether `record` and every version in it bear this very key's valid signature."""
        ...


class Verifier(Protocol):
    """Says which records are to be believed."""

    @property
    def epoch(self) -> int:
        """Rises when what is trusted has changed: what was decided before is to be asked again."""
        ...

    def check(self, record: Record) -> None:
        """Return when `record`, not a fence, is trusted. Raises Untrusted with the reason."""
        ...

    def check_version(self, record: Record, version: VersionRef) -> None:
        """Return when one version in `record` is trusted by itself. Raises Untrusted."""
        ...


def pre_auth(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: the bytes that are signed; no payload of one type is one of another."""
    kind = payload_type.encode()
    return b" ".join((b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload))


def record_message(record: Record) -> bytes:
    """What a signature over `record` signs."""
    return pre_auth(RECORD_PAYLOAD, replace(record, signatures=()).encode())


def version_message(
    record: Record, version: VersionRef, *, gen: object, time: object, key_id: object
) -> bytes:
    """What a signature over `version` of `record`'s adapter signs.

    `gen` and `time` are those of the record it was first signed for: a key's validity is judged by
    them however much later the version is served again.
    """
    statement: Mapping[str, Any] = {
        "tenant": record.tenant,
        "adapter": record.adapter,
        "label": version.label,
        "vdig": version.vdig,
        "gen": gen,
        "time": time,
        "key": key_id,
    }
    return pre_auth(VERSION_PAYLOAD, canonical_json(statement))


def repeats(fence: Record, below: Record) -> bool:
    """Whether `fence` is a fence record on `below` that says nothing new.

    Its contents, its labels and its fence number are those of `below`; who wrote it, when and in
    which transaction is nobody's claim.
    """
    if fence.kind is not RecordKind.FENCE or fence.signatures:
        return False
    said = replace(
        below,
        gen=below.gen + 1,
        kind=RecordKind.FENCE,
        parent=below.digest(),
        txid=fence.txid,
        attempt=fence.attempt,
        actor=fence.actor,
        time=fence.time,
        signatures=(),
    )
    return fence == said


def opens_empty_log(record: Record) -> bool:
    """Whether `record` is a fence in the first slot of a log: it serves nothing to anybody."""
    empty = Record(
        tenant=record.tenant,
        adapter=record.adapter,
        gen=1,
        kind=RecordKind.FENCE,
        active=None,
        parent="",
        fence=0,
        txid=record.txid,
        attempt=record.attempt,
        actor=record.actor,
        time=record.time,
    )
    return record == empty


def key_ids(signed: Record | VersionRef) -> tuple[str, ...]:
    """Which keys are named in its signatures; names only, nothing is checked."""
    return tuple(str(entry.get("key", "")) for entry in signed.signatures)

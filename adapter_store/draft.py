"""What the next record of a log would say, before anybody tries to commit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapter_store import layout
from adapter_store.errors import IntegrityError, NotFound
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import (
    MAX_INDEXED_VERSIONS,
    MAX_RECORD_BYTES,
    SIGNATURE_BYTES,
    Chunk,
    FileEntry,
    IndexEntry,
    Record,
    RecordKind,
    VersionRef,
    version_digest,
)
from adapter_store.upload import chunk_bodies, cut
from adapter_store.validate import LocalAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is to be served, and where to get its bytes."""

    kind: RecordKind
    label: str | None
    """None: named after the generation it lands in."""
    vdig: str
    base: str
    config: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    """Until they are placed, the chunks' keys mean nothing."""
    read: Callable[[Chunk], bytes]
    signatures: tuple[Mapping[str, Any], ...] = ()
    in_hand: bool = False
    """The publisher has the bytes and checked them, so its key may vouch for them."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes a record, and under which transaction."""

    txid: str
    attempt: int
    actor: str
    time: str


def local_content(local: LocalAdapter, label: str | None) -> Content:
    """A checked folder, to be published. Raises InvalidName."""
    if label is not None:
        layout.check_id("version", label)
    files = cut(local.files)
    bodies = chunk_bodies(files, local.files)
    config = local.spec.allow_listed()
    return Content(
        kind=RecordKind.PUBLISH,
        label=label,
        vdig=version_digest(
            base=local.base, config=config, files=[(f.name, f.size, f.sha256) for f in files]
        ),
        base=local.base,
        config=config,
        files=files,
        read=lambda chunk: bytes(bodies[chunk.sha256]),
        in_hand=True,
    )


def older_content(store: ObjectStore, reader: Reader, head: Record, to: str | None) -> Content:
    """Content the log names: by label or `sha256:<digest>`, or the one served before `head`'s.

    Raises NotFound, and again on reading when the store no longer keeps the bytes.
    """
    version = _before(reader, head) if to is None else _named(reader, head, to)
    keys = {chunk.sha256: chunk.key for file in version.files for chunk in file.chunks}

    def read(chunk: Chunk) -> bytes:
        try:
            return store.get(keys[chunk.sha256])
        except NotFound as error:
            raise NotFound(
                f"version {version.label!r} is no longer kept", hint="publish its content again"
            ) from error

    return Content(
        kind=RecordKind.ROLLBACK,
        label=version.label,
        vdig=version.vdig,
        base=version.base,
        config=version.config,
        files=version.files,
        read=read,
        signatures=version.signatures,
    )


def next_record(
    head: Record | None,
    content: Content,
    author: Author,
    *,
    tenant: str,
    adapter: str,
    fence: int,
) -> Record:
    """The record that makes `content` current on top of `head`; staging and canaries end with it.

    Raises IntegrityError when it cannot be made small enough.
    """
    gen = head.gen + 1 if head else 1
    label = content.label or _default_label(head, gen, content.vdig)
    kept = [entry for entry in (head.versions if head else ()) if entry.label != label]
    record = Record(
        tenant=tenant,
        adapter=adapter,
        gen=gen,
        kind=content.kind,
        active=VersionRef(
            label, content.vdig, content.base, content.config, content.files, content.signatures
        ),
        versions=(*kept, IndexEntry(label, content.vdig, gen))[-MAX_INDEXED_VERSIONS:],
        parent=head.digest() if head else "",
        fence=fence,
        txid=author.txid,
        attempt=author.attempt,
        actor=author.actor,
        time=author.time,
    )
    return _fitted(record)


def fence_record(head: Record | None, author: Author, *, tenant: str, adapter: str) -> Record:
    """A record after `head` that changes nothing a node serves: contents and fence stay."""
    if head is not None:
        return replace(
            head,
            gen=head.gen + 1,
            kind=RecordKind.FENCE,
            parent=head.digest(),
            txid=author.txid,
            attempt=author.attempt,
            actor=author.actor,
            time=author.time,
            signatures=(),
        )
    return Record(
        tenant=tenant,
        adapter=adapter,
        gen=1,
        kind=RecordKind.FENCE,
        active=None,
        parent="",
        fence=0,
        txid=author.txid,
        attempt=author.attempt,
        actor=author.actor,
        time=author.time,
    )


def served(head: Record | None) -> tuple[str, ...]:
    """Digests of what nodes serve under `head`; a fence record leaves them as they are."""
    if head is None:
        return ()
    versions = (head.active, head.staged, *(arm.version for arm in head.split))
    return tuple(version.vdig for version in versions if version is not None)


def _before(reader: Reader, head: Record) -> VersionRef:
    current = head.active.vdig if head.active else ""
    for record in reader.history(head.tenant, head.adapter):
        if record.active is not None and record.active.vdig != current:
            return record.active
    raise NotFound(f"{head.adapter} has served nothing else before", hint="publish instead")


def _named(reader: Reader, head: Record, to: str) -> VersionRef:
    ref = layout.parse_ref(f"{head.adapter}@{to}", tenant=head.tenant)
    found = reader.find(head, ref)
    if found is None:
        raise NotFound(f"there is no version {ref}", hint="list its versions")
    return found.version


def _default_label(head: Record | None, gen: int, vdig: str) -> str:
    if head is not None and head.active is not None and head.active.vdig == vdig:
        return head.active.label
    label = f"v{gen}"
    taken = head.indexed(label) if head else None
    return label if taken is None or taken.vdig == vdig else f"{label}-{vdig[:8]}"


def _fitted(record: Record) -> Record:
    """`record`, its oldest labels forgotten as far as its size demands; room is left to sign it."""
    while not _fits(record):
        if len(record.versions) < 2:
            record.encode()
            break
        record = replace(record, versions=record.versions[len(record.versions) // 8 + 1 :])
    return record


def _fits(record: Record) -> bool:
    try:
        return len(record.encode()) <= MAX_RECORD_BYTES - SIGNATURE_BYTES
    except IntegrityError:
        return False

"""What the next record of a log would say, before anybody tries to commit it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapter_store import layout
from adapter_store.errors import IntegrityError
from adapter_store.record import (
    MAX_INDEXED_VERSIONS,
    MAX_RECORD_BYTES,
    SIGNATURE_BYTES,
    Chunk,
    FileEntry,
    IndexEntry,
    Record,
    RecordKind,
    SplitArm,
    VersionRef,
    version_digest,
)
from adapter_store.upload import chunk_bodies, cut
from adapter_store.validate import LocalAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a change brings into its record, and where to get its bytes."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The part of a record that changes are about."""

    active: VersionRef | None = None
    staged: VersionRef | None = None
    split: tuple[SplitArm, ...] = ()

    def contents(self) -> list[VersionRef]:
        versions = (self.active, self.staged, *(arm.version for arm in self.split))
        return [version for version in versions if version is not None]

    def says_as(self, other: State) -> bool:
        """Whether both name the same content; under which labels and keys does not matter."""
        return self._digests() == other._digests()

    def _digests(self) -> tuple[object, ...]:
        arms = tuple((arm.weight, arm.version.vdig) for arm in self.split)
        return _vdig(self.active), _vdig(self.staged), arms


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one record is to change; kinds.py has one for each kind."""

    kind: RecordKind
    contents: tuple[Content, ...] = ()
    """Every chunk of these is in the store before the record is. What the record keeps of its
    parent needs no placing: the parent keeps it from collection until this record does."""
    draw: Callable[[State, tuple[VersionRef, ...]], State]
    """The next state, from the one before it and `contents` as versions."""

    def on(self, head: Record | None) -> State:
        """The state after this change."""
        return self.draw(state_of(head), self.versions(head))

    def versions(self, head: Record | None) -> tuple[VersionRef, ...]:
        """`contents` under the labels they would have in the record after `head`."""
        return tuple(
            VersionRef(
                content.label or _default_label(head, content.vdig),
                content.vdig,
                content.base,
                content.config,
                content.files,
                content.signatures,
            )
            for content in self.contents
        )

    def placed(self, files: tuple[FileEntry, ...]) -> Change:
        """The same with `files`, those of all contents in order, in place of their files."""
        rest = iter(files)
        contents = (
            replace(content, files=tuple(next(rest) for _ in content.files))
            for content in self.contents
        )
        return replace(self, contents=tuple(contents))


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


def state_of(head: Record | None) -> State:
    """What `head` says; before a first record, nothing."""
    if head is None:
        return State()
    return State(active=head.active, staged=head.staged, split=head.split)


def next_record(
    head: Record | None,
    change: Change,
    author: Author,
    *,
    tenant: str,
    adapter: str,
    fence: int,
) -> Record:
    """The record that makes `change` on top of `head`.

    Raises IntegrityError when it cannot be made small enough.
    """
    gen = head.gen + 1 if head else 1
    state = change.on(head)
    record = Record(
        tenant=tenant,
        adapter=adapter,
        gen=gen,
        kind=change.kind,
        active=state.active,
        staged=state.staged,
        split=state.split,
        versions=_index(head, change.versions(head), gen),
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


def chunks_of(versions: Iterable[VersionRef]) -> Iterable[Chunk]:
    return (chunk for version in versions for file in version.files for chunk in file.chunks)


def _index(head: Record | None, named: tuple[VersionRef, ...], gen: int) -> tuple[IndexEntry, ...]:
    """The labels known after `head`, those of `named` pointing at generation `gen` from now on."""
    labels = {version.label for version in named}
    kept = (entry for entry in (head.versions if head else ()) if entry.label not in labels)
    fresh = (IndexEntry(version.label, version.vdig, gen) for version in named)
    return (*kept, *fresh)[-MAX_INDEXED_VERSIONS:]


def _default_label(head: Record | None, vdig: str) -> str:
    if head is None:
        return "v1"
    for version in head.contents():
        if version.vdig == vdig:
            return version.label
    label = f"v{head.gen + 1}"
    taken = head.indexed(label)
    return label if taken is None or taken.vdig == vdig else f"{label}-{vdig[:8]}"


def _vdig(version: VersionRef | None) -> str | None:
    return version.vdig if version else None


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

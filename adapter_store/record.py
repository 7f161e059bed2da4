"""The words of the log: Record, VersionRef, FileEntry, Chunk, and their one canonical encoding.

A record is write-once and a full snapshot: the newest record alone says what the adapter serves.
Canonical JSON (sorted keys, no spaces, UTF-8, no NaN) makes equal records equal bytes, so a
digest of the encoding is an identity. Each record names the sha256 of its parent's bytes: a chain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar

from adapter_store.errors import IntegrityError, InvalidName
from adapter_store.names import (
    MAX_GENERATION,
    check_digest,
    check_file_name,
    check_id,
    check_txid,
)

FORMAT = 1
MAX_RECORD_BYTES = 256 * 1024
MAX_INDEXED_VERSIONS = 1024
MAX_ARMS = 8
MAX_WEIGHT = 1_000_000
MAX_FILES = 64
MAX_CARD_BYTES = 4 * 1024 * 1024
MAX_FEATURES = 2**24
MAX_NOTE = 256
"""Characters of what is kept for people to read: actor and time."""
SIGNATURE_BYTES = 1024
"""More than a signature over a record and one over its new version add to it."""

_NOT_JSON_OF_OURS = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_MODULE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_T = TypeVar("_T")


class RecordKind(Enum):
    """Why a record was written."""

    PUBLISH = "publish"
    ROLLBACK = "rollback"
    STAGE = "stage"
    ACTIVATE = "activate"
    SPLIT = "split"
    FENCE = "fence"
    TOMBSTONE = "tombstone"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes of one file, stored as one object."""

    key: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an adapter, with the objects that hold it in ascending offset."""

    name: str
    size: int
    sha256: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class VersionRef:
    """Published content under the label its publisher gave it."""

    label: str
    vdig: str
    """sha256 over config, base, and the files' names, sizes, digests; not over keys or labels."""
    base: str
    """Fingerprint of the base model the adapter was trained for."""
    config: Mapping[str, Any]
    """The allow-listed part of adapter_config.json."""
    files: tuple[FileEntry, ...]
    signatures: tuple[Mapping[str, Any], ...] = ()
    """By keys whose holders had the bytes in hand (signing.py); they travel with the version."""

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where in the log a label was last committed: old versions resolve without a walk."""

    label: str
    vdig: str
    gen: int


@dataclass(frozen=True, slots=True)
class SplitArm:
    """One share of a canary: `weight` parts of the traffic go to `version`."""

    weight: int
    version: VersionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One commit in an adapter's log."""

    tenant: str
    adapter: str
    gen: int
    kind: RecordKind
    active: VersionRef | None
    """What the adapter serves; None after a tombstone or before a first activation."""
    staged: VersionRef | None = None
    """What nodes may fetch ahead: readable by its label or digest, served to nobody else."""
    split: tuple[SplitArm, ...] = ()
    """A canary: who names an affinity key gets one of the arms, everybody else `active`."""
    versions: tuple[IndexEntry, ...] = ()
    """The newest MAX_INDEXED_VERSIONS labels, oldest first."""
    parent: str
    """sha256 of record gen-1's bytes; empty for generation 1."""
    fence: int
    txid: str
    attempt: int
    actor: str
    time: str
    """RFC 3339, information; only the dates of a trusted key's validity are judged by it."""
    signatures: tuple[Mapping[str, Any], ...] = field(default=())
    format: int = FORMAT

    def encode(self) -> bytes:
        """Canonical JSON. Raises IntegrityError for what nobody would read: see `decode_record`."""
        _check_names(self)
        _check_shape(self)
        value = _plain(asdict(self))
        value["kind"] = self.kind.value
        body = canonical_json(value)
        if len(body) > MAX_RECORD_BYTES:
            raise IntegrityError(f"record of {len(body)} bytes is over {MAX_RECORD_BYTES}")
        return body

    def digest(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()

    def contents(self) -> list[VersionRef]:
        """Every version whose bytes this record needs: active, staged, then the split's arms."""
        arms = (arm.version for arm in self.split)
        return [v for v in (self.active, self.staged, *arms) if v is not None]

    def indexed(self, label: str) -> IndexEntry | None:
        """The newest index entry with this label."""
        return next((e for e in reversed(self.versions) if e.label == label), None)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """A version that nobody signed has no `signatures` in its encoding."""
    arms = (arm["version"] for arm in record["split"])
    for version in (record["active"], record["staged"], *arms):
        if version is not None and not version["signatures"]:
            del version["signatures"]
    return record


def canonical_json(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def version_digest(
    *, base: str, config: Mapping[str, Any], files: Sequence[tuple[str, int, str]]
) -> str:
    """Identity of content: `files` are (name, size, sha256). Equal content gives equal digests."""
    content = {"base": base, "config": dict(config), "files": sorted(map(list, files))}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def decode_record(body: bytes) -> Record:
    """Parse and check one record. Raises IntegrityError on anything but a canonical record.

    Every name in it obeys its grammar, so it may go into a key, a path, a header or a terminal.
    """
    if len(body) > MAX_RECORD_BYTES:
        raise IntegrityError(f"record of {len(body)} bytes is over {MAX_RECORD_BYTES}")
    try:
        record = _record(json.loads(body))
        _check_types(record)
        if record.encode() != body:
            raise IntegrityError("record is not in canonical form")
        for version in record.contents():
            if _digest_of(version) != version.vdig:
                raise IntegrityError(f"version {version.label!r} does not match its digest")
    except _NOT_JSON_OF_OURS as error:
        raise IntegrityError(f"not a log record: {error}") from error
    return record


def _record(value: Any) -> Record:
    if value["format"] != FORMAT:
        raise IntegrityError(
            f"record format {ascii(value['format'])[:80]} is not {FORMAT}",
            hint="upgrade this program to read it",
        )
    return _typed(Record)(
        **{
            **value,
            "kind": RecordKind(value["kind"]),
            "active": _version(value["active"]),
            "staged": _version(value["staged"]),
            "split": tuple(
                _typed(SplitArm)(arm["weight"], _present(_version(arm["version"])))
                for arm in value["split"]
            ),
            "versions": tuple(_typed(IndexEntry)(**entry) for entry in value["versions"]),
            "signatures": tuple(value["signatures"]),
        }
    )


def _check_types(record: Record) -> None:
    """Raises IntegrityError unless every leaf has its declared type and no number is negative."""
    versions = record.contents()
    files = [file for version in versions for file in version.files]
    chunks = [chunk for file in files for chunk in file.chunks]
    texts = [
        *(record.tenant, record.adapter, record.parent, record.txid, record.actor, record.time),
        *(text for e in record.versions for text in (e.label, e.vdig)),
        *(text for v in versions for text in (v.label, v.vdig, v.base)),
        *(text for f in files for text in (f.name, f.sha256)),
        *(text for c in chunks for text in (c.key, c.sha256)),
    ]
    numbers = [
        *(record.gen, record.fence, record.attempt, record.format),
        *(entry.gen for entry in record.versions),
        *(arm.weight for arm in record.split),
        *(file.size for file in files),
        *(number for c in chunks for number in (c.offset, c.length)),
    ]
    objects = [
        *record.signatures,
        *(version.config for version in versions),
        *(signature for version in versions for signature in version.signatures),
    ]
    if not (
        all(type(text) is str for text in texts)
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(value, dict) for value in objects)
    ):
        raise IntegrityError("not a log record: a field has the wrong type")


def _check_names(record: Record) -> None:
    """Raises IntegrityError unless every name obeys its grammar and every place is in range."""
    try:
        check_id("tenant", record.tenant)
        check_id("adapter", record.adapter)
        check_txid(record.txid)
        if record.parent or record.gen != 1:
            check_digest(record.parent)
        for entry in record.versions:
            check_id("version", entry.label)
            check_digest(entry.vdig)
        for version in record.contents():
            _check_version(version)
    except InvalidName as error:
        raise IntegrityError(f"not a log record: {error}") from error
    notes = (record.actor, record.time)
    if not all(len(note) <= MAX_NOTE and note.isprintable() for note in notes):
        raise IntegrityError(f"actor and time are not {MAX_NOTE} printable characters at most")
    if not 1 <= record.gen <= MAX_GENERATION or len(record.versions) > MAX_INDEXED_VERSIONS:
        raise IntegrityError(f"generation {record.gen} or its index of versions is out of range")
    if not all(1 <= entry.gen <= record.gen for entry in record.versions):
        raise IntegrityError("the index of versions points outside the log")


def _check_version(version: VersionRef) -> None:
    check_id("version", version.label)
    check_digest(version.vdig)
    check_digest(version.base)
    names = [check_file_name(file.name) for file in version.files]
    if len(set(names)) != len(names) or len(names) > MAX_FILES:
        raise IntegrityError(f"version {version.label!r} names a file twice, or over {MAX_FILES}")
    for file in version.files:
        check_digest(file.sha256)
        for chunk in file.chunks:
            check_digest(chunk.sha256)


def _check_shape(record: Record) -> None:
    """Raises IntegrityError unless a split is one and a tombstone is empty."""
    arms = record.split
    if record.kind is RecordKind.TOMBSTONE and record.contents():
        raise IntegrityError("a tombstone names content")
    if arms and not 2 <= len({arm.version.vdig for arm in arms}) == len(arms) <= MAX_ARMS:
        raise IntegrityError(f"a split is not over 2 to {MAX_ARMS} different versions")
    if not all(1 <= arm.weight <= MAX_WEIGHT for arm in arms):
        raise IntegrityError(f"a weight of a split is not from 1 to {MAX_WEIGHT}")


def _present(version: VersionRef | None) -> VersionRef:
    if version is None:
        raise IntegrityError("a split arm names no version")
    return version


def _digest_of(version: VersionRef) -> str:
    return version_digest(
        base=version.base,
        config=version.config,
        files=[(f.name, f.size, f.sha256) for f in version.files],
    )


def _version(value: Mapping[str, Any] | None) -> VersionRef | None:
    if value is None:
        return None
    files = tuple(
        _typed(FileEntry)(
            f["name"], f["size"], f["sha256"], tuple(_typed(Chunk)(**c) for c in f["chunks"])
        )
        for f in value["files"]
    )
    config = value["config"]
    if not isinstance(config, dict):
        raise IntegrityError("a version's config is not an object")
    signatures = tuple(value.get("signatures", ()))
    return _typed(VersionRef)(
        value["label"], value["vdig"], value["base"], config, files, signatures
    )


def _typed(kind: Callable[..., _T]) -> Callable[..., _T]:
    """`kind`'s constructor, raising IntegrityError when a str or int field holds something else."""

    def build(*args: Any, **values: Any) -> _T:
        made = kind(*args, **values)
        for part in fields(made):  # type: ignore[arg-type]
            expected = {"str": str, "int": int}.get(str(part.type))
            if expected and type(getattr(made, part.name)) is not expected:
                raise IntegrityError(f"{part.name} is not of type {part.type}")
        return made

    return build


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCard:
    """What a publisher needs to know of a base model to validate an adapter without loading it."""

    fingerprint: str
    """64 hex: config, weight digests and quantisation of the base, as the node computes it."""
    name: str
    architecture: str
    modules: Mapping[str, tuple[int, int]]
    """Every linear an adapter may target, by full module name: (out_features, in_features)."""
    max_rank: int = 64
    format: int = FORMAT

    def encode(self) -> bytes:
        return canonical_json(asdict(self))


def decode_base_card(body: bytes) -> BaseCard:
    """Parse a base card. Raises IntegrityError."""
    if len(body) > MAX_CARD_BYTES:
        raise IntegrityError(f"base card of {len(body)} bytes is over {MAX_CARD_BYTES}")
    try:
        value = json.loads(body)
        if value["format"] != FORMAT:
            raise IntegrityError(f"base card format {ascii(value['format'])[:80]} is not {FORMAT}")
        modules = {name: (out, width) for name, (out, width) in value["modules"].items()}
        card = _typed(BaseCard)(**{**value, "modules": modules})
        check_digest(card.fingerprint)
    except (InvalidName, *_NOT_JSON_OF_OURS) as error:
        raise IntegrityError(f"not a base card: {error}") from error
    sizes = [size for pair in card.modules.values() for size in pair]
    if not all(type(size) is int and 0 < size <= MAX_FEATURES for size in sizes):
        raise IntegrityError("a base card gives a module no proper size")
    if not all(_MODULE.fullmatch(name) for name in card.modules) or card.max_rank < 1:
        raise IntegrityError("a base card has a module without a proper name, or no rank")
    if not (card.name.isprintable() and card.architecture.isprintable()):
        raise IntegrityError("a base card's name is not printable")
    return card

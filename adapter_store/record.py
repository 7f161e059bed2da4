"""The words of the log: Record, VersionRef, FileEntry, Chunk, and their one canonical encoding.

A record is write-once and a full snapshot: the newest record alone says what the adapter serves.
Canonical JSON (sorted keys, no spaces, UTF-8, no NaN) makes equal records equal bytes, so a
digest of the encoding is an identity. Each record names the sha256 of its parent's bytes: a chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar

from adapter_store.errors import IntegrityError

FORMAT = 1
MAX_RECORD_BYTES = 256 * 1024
MAX_INDEXED_VERSIONS = 1024

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
    split: tuple[SplitArm, ...] = ()
    versions: tuple[IndexEntry, ...] = ()
    """The newest MAX_INDEXED_VERSIONS labels, oldest first."""
    parent: str
    """sha256 of record gen-1's bytes; empty for generation 1."""
    fence: int
    txid: str
    attempt: int
    actor: str
    time: str
    """RFC 3339, information only: nothing decides by it."""
    signatures: tuple[Mapping[str, Any], ...] = field(default=())
    format: int = FORMAT

    def encode(self) -> bytes:
        """Canonical JSON. Raises IntegrityError past MAX_RECORD_BYTES."""
        value = asdict(self)
        value["kind"] = self.kind.value
        body = canonical_json(value)
        if len(body) > MAX_RECORD_BYTES:
            raise IntegrityError(f"record of {len(body)} bytes is over {MAX_RECORD_BYTES}")
        return body

    def digest(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()

    def indexed(self, label: str) -> IndexEntry | None:
        """The newest index entry with this label."""
        return next((e for e in reversed(self.versions) if e.label == label), None)


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
    """Parse and check one record. Raises IntegrityError on anything but a canonical record."""
    if len(body) > MAX_RECORD_BYTES:
        raise IntegrityError(f"record of {len(body)} bytes is over {MAX_RECORD_BYTES}")
    try:
        value = json.loads(body)
        if value["format"] != FORMAT:
            raise IntegrityError(
                f"record format {value['format']!r} is not {FORMAT}",
                hint="upgrade this program to read it",
            )
        record = _typed(Record)(
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
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"not a log record: {error}") from error
    _check_types(record)
    if record.encode() != body:
        raise IntegrityError("record is not in canonical form")
    for version in _contents(record):
        if _digest_of(version) != version.vdig:
            raise IntegrityError(f"version {version.label!r} does not match its digest")
    return record


def _contents(record: Record) -> list[VersionRef]:
    arms = (arm.version for arm in record.split)
    return [v for v in (record.active, record.staged, *arms) if v is not None]


def _check_types(record: Record) -> None:
    """Raises IntegrityError unless every leaf has its declared type and no number is negative."""
    versions = _contents(record)
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
    objects = [*record.signatures, *(version.config for version in versions)]
    if not (
        all(type(text) is str for text in texts)
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(value, dict) for value in objects)
    ):
        raise IntegrityError("not a log record: a field has the wrong type")


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
    return _typed(VersionRef)(value["label"], value["vdig"], value["base"], config, files)


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
    try:
        value = json.loads(body)
        card = _typed(BaseCard)(
            **{**value, "modules": {k: (int(o), int(i)) for k, (o, i) in value["modules"].items()}}
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"not a base card: {error}") from error
    if card.format != FORMAT:
        raise IntegrityError(f"base card format {card.format!r} is not {FORMAT}")
    return card

"""What a collection would take away, told as versions instead of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adapter_store import layout
from adapter_store.errors import IntegrityError, InvalidName
from adapter_store.objects import ObjectStore, listed
from adapter_store.record import Record, VersionRef
from adapter_store.retention import LogEntry, in_parallel, logs_of, read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Chunks nobody needs that belong together."""

    adapter: str
    """Empty for chunks that no readable record names: what crashed publishers left."""
    label: str
    vdig: str
    gen: int
    """The newest record that names them; 0 for none."""
    chunks: int
    bytes: int

    @property
    def why(self) -> str:
        return "out of retention" if self.adapter else "named by no record"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a tenant stores and how much of it is garbage."""

    tenant: str
    chunks: int
    bytes: int
    garbage: tuple[Garbage, ...]
    """Versions by adapter, newest first; what belongs to none comes last."""
    requests: int


@dataclass(frozen=True, slots=True)
class _Named:
    """A version as one record names it."""

    adapter: str
    gen: int
    version: VersionRef


def chunks_stored(
    store: ObjectStore, tenant: str, *, warn: Callable[[str], None]
) -> dict[str, int]:
    """Bytes of every stored chunk by its key; other objects among them are left alone."""
    sizes: dict[str, int] = {}
    for head in listed(store, layout.blobs_prefix(tenant)):
        try:
            layout.parse_blob_key(head.key)
        except InvalidName:
            warn(f"{head.key} is no chunk of ours and stays")
        else:
            sizes[head.key] = head.size
    return sizes


def explain(
    store: ObjectStore, tenant: str, garbage: dict[str, int], *, parallel: int
) -> tuple[Garbage, ...]:
    """`garbage` (bytes by key) by the versions it belonged to; reads the whole log for it."""
    rest = dict(garbage)
    found: list[Garbage] = []
    logs = logs_of(store, tenant) if rest else iter(())

    def named(log: list[LogEntry]) -> list[_Named]:
        return [name for entry in log for name in _named(store, tenant, entry)]

    for names in in_parallel(named, logs, parallel):
        for name in names:
            # Equal content of two versions counts once, for the newest.
            chunks = {chunk.key for file in name.version.files for chunk in file.chunks}
            sizes = [rest.pop(key) for key in chunks & rest.keys()]
            if sizes:
                found.append(_garbage(name, sizes))
    if rest:
        sizes = list(rest.values())
        found.append(
            Garbage(adapter="", label="", vdig="", gen=0, chunks=len(sizes), bytes=sum(sizes))
        )
    return tuple(found)


def _named(store: ObjectStore, tenant: str, entry: LogEntry) -> Iterator[_Named]:
    try:
        record: Record = read_record(store, tenant, entry)
    except IntegrityError:
        return
    for version in record.contents():
        yield _Named(entry.adapter, entry.gen, version)


def _garbage(name: _Named, sizes: list[int]) -> Garbage:
    version = name.version
    return Garbage(
        adapter=name.adapter,
        label=version.label,
        vdig=version.vdig,
        gen=name.gen,
        chunks=len(sizes),
        bytes=sum(sizes),
    )

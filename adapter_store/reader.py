"""What is current, which version a reference means, and its bytes, all verified.

The read rule: from generation N, which this reader knows, the next record is at N+1 or N is
current. One GET answers, no listing. A reader that knows nothing lists the log, newest first,
and starts there. What a reader knows only rises, and each step up is checked against the hash of
the record below it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from adapter_store import layout
from adapter_store.cache import ContentCache
from adapter_store.canary import choose_arm
from adapter_store.errors import IntegrityError, InvalidName, NotFound
from adapter_store.layout import AdapterRef
from adapter_store.objects import ObjectStore
from adapter_store.record import (
    Chunk,
    FileEntry,
    Record,
    RecordKind,
    VersionRef,
    decode_record,
)
from adapter_store.signing import Verifier

MAX_VERSION_BYTES = 512 * 1024 * 1024
_REMEMBERED_RECORDS = 1024
FETCH_THREADS = 4


@dataclass(frozen=True, slots=True)
class Resolved:
    """One immutable version, and the record that says it is served."""

    tenant: str
    adapter: str
    gen: int
    kind: RecordKind
    version: VersionRef


@dataclass(frozen=True, slots=True)
class _Known:
    record: Record
    digest: str


class Reader:
    """Reads logs and content; safe for several threads, and writes nothing to the store."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        cache: ContentCache | None = None,
        verifier: Verifier | None = None,
        parallel: int = FETCH_THREADS,
    ) -> None:
        """`fetch` asks for `parallel` chunks at once; 1 needs no thread but the caller's."""
        self._store = store
        self._cache = cache
        self._verifier = verifier
        self._parallel = parallel
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], _Known] = {}
        self._old: OrderedDict[tuple[str, str, int], Record] = OrderedDict()

    def head(self, tenant: str, adapter: str) -> Record:
        """The current record, asked of the store now.

        Raises NotFound for an adapter without a log, IntegrityError when a record breaks the
        chain (what was known before stays known), StoreUnavailable, StoreRefused.
        """
        known = self._recall(tenant, adapter) or self._first(tenant, adapter)
        return self._walk(known).record

    def known_gen(self, tenant: str, adapter: str) -> int:
        """The highest generation seen so far, 0 for none; asks nobody."""
        known = self._recall(tenant, adapter)
        return known.record.gen if known else 0

    def resolve(self, ref: AdapterRef, *, affinity: str = "", refresh: bool = True) -> Resolved:
        """The version that `ref` means.

        During a split, `affinity` chooses the arm for a `ref` that pins none: the same key gets
        the same arm while the weights allow it (canary.py). Without a key it is the active version.

        With `refresh` the store is asked for news; without, what is known answers, and only an
        adapter never seen before costs requests. A pinned version costs at most 3 requests cold.
        Raises NotFound for an unknown adapter or version and after a tombstone, and as `head`.
        """
        known = self._recall(ref.tenant, ref.adapter)
        cold = known is None
        if known is None:
            known = self._first(ref.tenant, ref.adapter)
        # A listing is current by itself, so a pinned version found under it needs no walk.
        if refresh and not (cold and ref.pinned):
            known = self._walk(known)
        found = self._select(known.record, ref, affinity)
        if found is None and cold and ref.pinned:
            known = self._walk(known)
            found = self._select(known.record, ref, affinity)
        if found is None:
            raise _no_version(known.record, ref)
        return found

    def record(self, tenant: str, adapter: str, gen: int) -> Record:
        """The record of one generation, from memory when it was read lately. Raises NotFound."""
        known = self._recall(tenant, adapter)
        if known is not None and known.record.gen == gen:
            return known.record
        with self._lock:
            if (tenant, adapter, gen) in self._old:
                self._old.move_to_end((tenant, adapter, gen))
                return self._old[tenant, adapter, gen]
        record = self._read(tenant, adapter, gen).record
        with self._lock:
            self._old[tenant, adapter, gen] = record
            if len(self._old) > _REMEMBERED_RECORDS:
                self._old.popitem(last=False)
        return record

    def find(self, record: Record, ref: AdapterRef) -> Resolved | None:
        """The version that `ref` pins, in `record` or where its index points; one GET at most."""
        here = _pinned(record, ref)
        if here is not None:
            return _resolved(record, here)
        for entry in reversed(record.versions):
            if entry.label == ref.label if ref.label else entry.vdig == ref.vdig:
                older = self.record(ref.tenant, ref.adapter, entry.gen)
                version = _pinned(older, AdapterRef(ref.tenant, ref.adapter, vdig=entry.vdig))
                if version is None:
                    raise IntegrityError(f"generation {entry.gen} lacks version {entry.label!r}")
                return _resolved(older, version)
        return None

    def history(self, tenant: str, adapter: str) -> Iterator[Record]:
        """Every record, newest first. Raises IntegrityError where the chain breaks."""
        record = self.head(tenant, adapter)
        yield record
        while record.gen > 1:
            try:
                older = self._read(tenant, adapter, record.gen - 1)
            except NotFound as error:
                raise IntegrityError(f"generation {record.gen - 1} of {adapter} is gone") from error
            if older.digest != record.parent:
                raise IntegrityError(f"generation {record.gen} of {adapter} has another parent")
            record = older.record
            yield record

    def adapters(self, tenant: str) -> Iterator[str]:
        """The names of a tenant's adapters, in order."""
        prefix = layout.adapters_prefix(tenant)
        token: str | None = None
        while True:
            page = self._store.list(prefix, delimiter="/", token=token)
            for folder in page.folders:
                yield folder.removeprefix(prefix).removesuffix("/")
            token = page.next_token
            if token is None:
                return

    def fetch(self, tenant: str, version: VersionRef, *, adapter: str = "") -> dict[str, bytes]:
        """Every file of a version by name, each byte covered by a checked sha256.

        A chunk that comes damaged is fetched once more. Raises IntegrityError when it stays
        damaged; when a chunk is gone, NotFound, or IntegrityError if `adapter` is given and
        still needs this very version. Raises StoreUnavailable and StoreRefused.
        """
        _check_plan(tenant, version)
        chunks = [chunk for file in version.files for chunk in file.chunks]
        try:
            bodies = dict(zip(chunks, self._fetch_all(chunks), strict=True))
        except NotFound as error:
            raise self._gone(tenant, adapter, version) from error
        return {file.name: _assemble(file, bodies) for file in version.files}

    def _recall(self, tenant: str, adapter: str) -> _Known | None:
        with self._lock:
            return self._known.get((tenant, adapter))

    def _learn(self, found: _Known) -> _Known:
        """Remember `found` unless another thread already knows more; what is known now."""
        key = (found.record.tenant, found.record.adapter)
        with self._lock:
            known = self._known.get(key)
            if known is None or known.record.gen < found.record.gen:
                self._known[key] = known = found
            return known

    def _first(self, tenant: str, adapter: str) -> _Known:
        page = self._store.list(layout.log_prefix(tenant, adapter), limit=1)
        if not page.keys:
            raise NotFound(f"there is no adapter {adapter!r}", hint="publish it first")
        try:
            newest = layout.parse_log_key(page.keys[0])
        except InvalidName as error:
            raise IntegrityError(f"the log of {adapter} holds what is no record") from error
        return self._learn(self._read(tenant, adapter, newest))

    def _walk(self, known: _Known) -> _Known:
        while True:
            record = known.record
            try:
                found = self._read(record.tenant, record.adapter, record.gen + 1)
            except NotFound:
                return known
            if found.record.parent != known.digest:
                raise IntegrityError(
                    f"generation {found.record.gen} of {record.adapter} has another parent",
                    hint="the log was tampered with; what was current before stays current",
                )
            known = self._learn(found)

    def _read(self, tenant: str, adapter: str, gen: int) -> _Known:
        body = self._store.get(layout.log_key(tenant, adapter, gen))
        record = decode_record(body)
        if (record.tenant, record.adapter, record.gen) != (tenant, adapter, gen):
            raise IntegrityError(f"the record at generation {gen} of {adapter} is another's")
        for version in record.contents():
            _check_plan(tenant, version)
        return _Known(record, hashlib.sha256(body).hexdigest())

    def _select(self, record: Record, ref: AdapterRef, affinity: str) -> Resolved | None:
        version = record.active
        if version is None:
            # Of a deleted adapter nothing is left but what was staged since.
            version = _pinned(record, ref) if ref.pinned else None
        elif ref.pinned:
            return self.find(record, ref)
        elif record.split and affinity:
            version = choose_arm(record, affinity)
        return None if version is None else _resolved(record, version)

    def _fetch_all(self, chunks: list[Chunk]) -> list[bytes]:
        threads = min(self._parallel, len(chunks))
        if threads < 2:
            return [self._chunk(chunk) for chunk in chunks]
        with ThreadPoolExecutor(threads, "fetch") as pool:
            return list(pool.map(self._chunk, chunks))

    def _chunk(self, chunk: Chunk) -> bytes:
        cached = self._cache.get(chunk.sha256) if self._cache else None
        if cached is not None:
            return cached
        body = self._verified(chunk) or self._verified(chunk)
        if body is None:
            raise IntegrityError(
                f"chunk {chunk.sha256} comes back damaged",
                hint="publish this version again; its stored bytes are not what was sent",
            )
        if self._cache:
            self._cache.put(chunk.sha256, body)
        return body

    def _verified(self, chunk: Chunk) -> bytes | None:
        try:
            body = self._store.get(chunk.key)
        except IntegrityError:
            return None
        intact = len(body) == chunk.length and hashlib.sha256(body).hexdigest() == chunk.sha256
        return body if intact else None

    def _gone(self, tenant: str, adapter: str, version: VersionRef) -> NotFound | IntegrityError:
        if adapter:
            current = self.head(tenant, adapter)
            if any(kept.files == version.files for kept in current.contents()):
                return IntegrityError(
                    f"{adapter} needs {version.label!r}, and a chunk of it is gone",
                    hint="publish this version again",
                )
        return NotFound(
            f"version {version.label!r} is no longer kept",
            hint="resolve again, or publish its content again",
        )


def _resolved(record: Record, version: VersionRef) -> Resolved:
    return Resolved(record.tenant, record.adapter, record.gen, record.kind, version)


def _pinned(record: Record, ref: AdapterRef) -> VersionRef | None:
    for version in record.contents():
        if version.label == ref.label if ref.label else version.vdig == ref.vdig:
            return version
    return None


def _no_version(record: Record, ref: AdapterRef) -> NotFound:
    if record.active is not None:
        return NotFound(
            f"there is no version {ref}", hint="list its versions; very old labels are forgotten"
        )
    if record.staged is not None:
        return NotFound(
            f"{ref.adapter} serves nothing yet, {record.staged.label!r} is staged",
            hint="activate the staged version",
        )
    if not record.versions:
        return NotFound(f"{ref.adapter} serves nothing", hint="publish a version of it first")
    return NotFound(
        f"{ref.adapter} was deleted, generation {record.gen} serves nothing",
        hint="publish it again, or roll back to a version of it",
    )


def _check_plan(tenant: str, version: VersionRef) -> None:
    """Chunks tile their files, lie in this tenant's folder, and stay within bounds."""
    if version.bytes > MAX_VERSION_BYTES:
        raise IntegrityError(f"version {version.label!r} is over {MAX_VERSION_BYTES} bytes")
    for file in version.files:
        offset = 0
        for chunk in file.chunks:
            ours = chunk.key.startswith(layout.blob_prefix(tenant, chunk.sha256))
            if not ours or chunk.offset != offset or not 0 < chunk.length <= layout.CHUNK_BYTES:
                raise IntegrityError(f"the chunks of {file.name!r} are out of place")
            offset += chunk.length
        if offset != file.size:
            raise IntegrityError(f"the chunks of {file.name!r} are not its {file.size} bytes")


def _assemble(file: FileEntry, bodies: dict[Chunk, bytes]) -> bytes:
    if len(file.chunks) == 1 and file.chunks[0].sha256 == file.sha256:
        return bodies[file.chunks[0]]
    body = b"".join(bodies[chunk] for chunk in file.chunks)
    if hashlib.sha256(body).hexdigest() != file.sha256:
        raise IntegrityError(f"the chunks of {file.name!r} do not make up the file")
    return body

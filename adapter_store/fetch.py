"""The bytes of a version: chunks from the cache or the store, each hashed, put together."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat

from adapter_store.cache import ContentCache
from adapter_store.errors import IntegrityError
from adapter_store.objects import ObjectStore
from adapter_store.record import Chunk, FileEntry, VersionRef

FETCH_THREADS = 4


class Fetcher:
    """Fetches whole versions; safe for several threads."""

    def __init__(self, store: ObjectStore, *, cache: ContentCache | None, parallel: int) -> None:
        """`parallel` chunks are asked for at once; 1 needs no thread but the caller's."""
        self._store = store
        self._cache = cache
        self._parallel = parallel

    def fetch(self, tenant: str, version: VersionRef) -> dict[str, bytes]:
        """Every file by name; the caller has checked the plan of its chunks.

        What the cache holds for another tenant is not found, be it equal.

        Raises IntegrityError for a chunk that comes damaged twice, NotFound for one that is gone,
        StoreUnavailable, StoreRefused.
        """
        chunks = [chunk for file in version.files for chunk in file.chunks]
        with contextlib.closing(self._bodies(tenant, chunks)) as bodies:
            return {file.name: _assemble(file, bodies) for file in version.files}

    def _bodies(self, tenant: str, chunks: list[Chunk]) -> Generator[bytes]:
        """In order, each as soon as it is there; later ones are on their way meanwhile."""
        threads = min(self._parallel, len(chunks))
        if threads < 2:
            yield from map(self._chunk, repeat(tenant), chunks)
            return
        with ThreadPoolExecutor(threads, "fetch") as pool:
            yield from pool.map(self._chunk, repeat(tenant), chunks)

    def _chunk(self, tenant: str, chunk: Chunk) -> bytes:
        cached = self._cache.get(chunk.sha256, owner=tenant) if self._cache else None
        if cached is not None:
            return cached
        body = self._verified(chunk) or self._verified(chunk)
        if body is None:
            raise IntegrityError(
                f"chunk {chunk.sha256} comes back damaged",
                hint="publish this version again; its stored bytes are not what was sent",
            )
        if self._cache:
            self._cache.put(chunk.sha256, body, owner=tenant)
        return body

    def _verified(self, chunk: Chunk) -> bytes | None:
        try:
            body = self._store.get(chunk.key)
        except IntegrityError:
            return None
        intact = len(body) == chunk.length and hashlib.sha256(body).hexdigest() == chunk.sha256
        return body if intact else None


def _assemble(file: FileEntry, bodies: Iterator[bytes]) -> bytes:
    """The file of the next chunks in `bodies`, hashed while others still travel."""
    if len(file.chunks) == 1 and file.chunks[0].sha256 == file.sha256:
        return next(bodies)
    digest, parts = hashlib.sha256(), []
    for part in islice(bodies, len(file.chunks)):
        digest.update(part)
        parts.append(part)
    if digest.hexdigest() != file.sha256:
        raise IntegrityError(f"the chunks of {file.name!r} do not make up the file")
    return b"".join(parts)

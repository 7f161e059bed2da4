"""Chunks into the store: found and reused, or sent and read back.

A chunk may be reused only when no collection plan names its key, which is why the plans are read
after the intent is written. A key is never used twice, not even by a second attempt to send the
same chunk, because a collector may be about to delete the first.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Protocol

from adapter_store import layout
from adapter_store.errors import (
    AlreadyExists,
    Conflict,
    IntegrityError,
    NotFound,
    OutcomeUnknown,
    StoreUnavailable,
)
from adapter_store.intent import decode_plan
from adapter_store.objects import ObjectStore
from adapter_store.record import Chunk, FileEntry

UPLOAD_THREADS = 4
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)


class UploadProgress(Protocol):
    """Told how far an upload is; calls come from several threads, one at a time.

    After `planned`, every chunk of every file is named once: in `sent` when its bytes went out
    for it, else in `reused`. An attempt that was overtaken plans anew, and reuses what it sent.
    """

    def planned(self, files: Sequence[FileEntry]) -> None: ...

    def sent(self, file: str, chunk: Chunk) -> None: ...

    def reused(self, file: str, chunk: Chunk) -> None: ...


@dataclass(frozen=True, slots=True)
class NoProgress:
    """Nobody is watching."""

    def planned(self, files: Sequence[FileEntry]) -> None:
        return

    def sent(self, file: str, chunk: Chunk) -> None:
        return

    def reused(self, file: str, chunk: Chunk) -> None:
        return


@dataclass(frozen=True, slots=True)
class Placed:
    """Files whose every chunk is in the store under a key that no plan names."""

    files: tuple[FileEntry, ...]
    bytes_sent: int


def cut(files: Mapping[str, bytes]) -> tuple[FileEntry, ...]:
    """Files as entries whose chunks have digests but, until they are placed, no keys."""
    return tuple(_cut(name, body) for name, body in sorted(files.items()))


def _cut(name: str, body: bytes) -> FileEntry:
    if len(body) <= layout.CHUNK_BYTES:
        chunks = _chunks(body)
        whole = chunks[0].sha256 if chunks else hashlib.sha256().hexdigest()
        return FileEntry(name, len(body), whole, chunks)
    # Hashing lets go of the interpreter, so the file and its chunks are hashed side by side.
    with ThreadPoolExecutor(1, "hash") as pool:
        hashed = pool.submit(hashlib.sha256, body)
        chunks = _chunks(body)
        return FileEntry(name, len(body), hashed.result().hexdigest(), chunks)


def _chunks(body: bytes) -> tuple[Chunk, ...]:
    return tuple(
        Chunk("", offset, len(part), hashlib.sha256(part).hexdigest())
        for offset, part in _parts(body)
    )


def chunk_bodies(entries: Sequence[FileEntry], files: Mapping[str, bytes]) -> dict[str, memoryview]:
    """Every chunk of `entries`, cut from `files`, by its sha256, as views."""
    return {
        chunk.sha256: memoryview(files[entry.name])[chunk.offset : chunk.offset + chunk.length]
        for entry in entries
        for chunk in entry.chunks
    }


def condemned_keys(store: ObjectStore, tenant: str) -> frozenset[str]:
    """Every key in every collection plan. Call it after the intent is written."""
    keys: set[str] = set()
    token: str | None = None
    while True:
        page = store.list(layout.plans_prefix(tenant), token=token)
        for plan in page.keys:
            try:
                keys.update(decode_plan(store.get(plan)).keys)
            except NotFound:
                # A plan goes only after all its keys are gone, so it has nothing to add.
                continue
        token = page.next_token
        if token is None:
            return frozenset(keys)


def put_once(store: ObjectStore, key: str, body: bytes, *, sleep: Callable[[float], None]) -> None:
    """Create a key that only this caller writes; sending it twice is harmless.

    Raises StoreUnavailable when the store took none of several tries.
    """
    for pause in (*_PAUSES_S, None):
        try:
            store.put_new(key, body)
        except AlreadyExists:
            return
        except (OutcomeUnknown, StoreUnavailable) as error:
            if pause is None:
                raise StoreUnavailable(
                    f"the store did not take {key}; nothing was committed",
                    hint="publish again when the store answers",
                ) from error
            sleep(pause)
        else:
            return


class Uploader:
    """Places the chunks of one attempt."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        tenant: str,
        txid: str,
        attempt: int,
        condemned: frozenset[str],
        read: Callable[[Chunk], bytes],
        before_write: Callable[[], None],
        sleep: Callable[[float], None],
        progress: UploadProgress,
        parallel: int = UPLOAD_THREADS,
    ) -> None:
        """At most `parallel` chunks travel at once; 1 needs no thread but the caller's."""
        self._store = store
        self._tenant = tenant
        self._txid = txid
        self._attempt = attempt
        self._condemned = condemned
        self._read = read
        self._before_write = before_write
        self._sleep = sleep
        self._progress = progress
        self._parallel = parallel
        self._lock = threading.Lock()
        self._bytes_sent = 0
        self._uses: dict[str, list[tuple[str, Chunk]]] = {}

    def place(self, files: tuple[FileEntry, ...]) -> Placed:
        """Reuse or send every chunk. Raises what the store and `before_write` raise."""
        for file in files:
            for chunk in file.chunks:
                self._uses.setdefault(chunk.sha256, []).append((file.name, chunk))
        self._progress.planned(files)
        distinct = [uses[0][1] for uses in self._uses.values()]
        keys = dict(zip(self._uses, self._place_all(distinct), strict=True))
        placed = tuple(
            replace(file, chunks=tuple(replace(c, key=keys[c.sha256]) for c in file.chunks))
            for file in files
        )
        return Placed(placed, self._bytes_sent)

    def _place_all(self, chunks: list[Chunk]) -> list[str]:
        threads = min(self._parallel, len(chunks))
        if threads < 2:
            return [self._place(chunk) for chunk in chunks]
        with ThreadPoolExecutor(threads, "upload") as pool:
            futures = [pool.submit(self._place, chunk) for chunk in chunks]
            wait(futures, return_when=FIRST_EXCEPTION)
            pool.shutdown(wait=True, cancel_futures=True)
        # A cancelled chunk only says that another failed; that one's error is the one to raise.
        for future in futures:
            if not future.cancelled():
                future.result()
        return [future.result() for future in futures]

    def _place(self, chunk: Chunk) -> str:
        for key in self._store.list(layout.blob_prefix(self._tenant, chunk.sha256)).keys:
            if key not in self._condemned and holds(self._store, key, chunk):
                self._placed(chunk, sent=False)
                return key
        body = self._read(chunk)
        key = layout.blob_key(self._tenant, chunk.sha256, self._txid, self._attempt)
        self._before_write()
        put_once(self._store, key, body, sleep=self._sleep)
        if not holds(self._store, key, chunk):
            raise self._unheld(key, chunk)
        self._placed(chunk, sent=True)
        return key

    def _unheld(self, key: str, chunk: Chunk) -> Conflict | IntegrityError:
        """Why a chunk that was sent is not there as sent."""
        if key not in self._store.list(key).keys:
            return Conflict(
                "a collector cleared this publish away: it stood still for too long",
                hint="publish again",
            )
        return IntegrityError(
            f"chunk {chunk.sha256} did not read back as it was sent; nothing was committed",
            hint="publish again; if it happens twice, check the store",
        )

    def _placed(self, chunk: Chunk, *, sent: bool) -> None:
        first, *others = self._uses[chunk.sha256]
        with self._lock:
            if sent:
                self._bytes_sent += chunk.length
                self._progress.sent(*first)
            else:
                self._progress.reused(*first)
            for use in others:
                self._progress.reused(*use)


def holds(store: ObjectStore, key: str, chunk: Chunk) -> bool:
    """Whether `key` holds exactly this chunk, by the store's own checksum or by reading it."""
    try:
        head = store.head(key)
        if head.size != chunk.length:
            return False
        sha256 = head.sha256 or hashlib.sha256(store.get(key)).hexdigest()
    except NotFound:
        return False
    return sha256 == chunk.sha256


def _parts(body: bytes) -> Iterator[tuple[int, memoryview]]:
    view = memoryview(body)
    for offset in range(0, len(body), layout.CHUNK_BYTES):
        yield offset, view[offset : offset + layout.CHUNK_BYTES]

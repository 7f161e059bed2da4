"""Chunks already fetched, kept in a folder under their sha256 and whose they are.

The cache is never needed: whatever goes wrong in the folder costs a fetch, not an answer. Bytes
are hashed again on every read, so a damaged entry is dropped instead of served. Several processes
may share one folder: entries appear by rename, and an entry that vanished is a miss.

Equal content of two owners is kept twice: else how long a fetch takes would tell one tenant what
another one has.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapter_store.layout import check_digest

STALE_TEMPORARY_S = 3600.0
_LOW_WATER = 0.9


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since this object was made."""

    hits: int
    misses: int
    corrupt: int
    failed_writes: int
    evicted: int


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used: float


class ContentCache:
    """At most about `budget_bytes` of content in `folder`, least recently used dropped first."""

    def __init__(
        self,
        folder: Path,
        *,
        budget_bytes: int,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`warn` is told once when the disk takes nothing, and again after it took something."""
        self._folder = folder
        self._warn = warn
        self._failing = False
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(CacheStats.__dataclass_fields__, 0)
        self._held_bytes = sum(entry.size for entry in self._scan())

    @property
    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(**self._counts)

    def get(self, sha256: str, *, owner: str = "") -> bytes | None:
        """The content with this digest that was put for this owner, checked, or None."""
        path = self._path(sha256, owner)
        try:
            body = path.read_bytes()
            os.utime(path)
        except OSError:
            self._count("misses")
            return None
        if hashlib.sha256(body).hexdigest() != sha256:
            with contextlib.suppress(OSError):
                path.unlink()
            self._count("corrupt")
            return None
        self._count("hits")
        return body

    def put(self, sha256: str, body: bytes, *, owner: str = "") -> bool:
        """Keep `body`, whose digest the caller has checked. False when it could not be kept."""
        path = self._path(sha256, owner)
        if len(body) > self._budget:
            return False
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._count("failed_writes")
            if not self._failing:
                self._failing = True
                self._warn(f"the cache in {self._folder} keeps nothing: {error.strerror}")
            return False
        self._failing = False
        with self._lock:
            self._held_bytes += len(body)
            if self._held_bytes > self._budget:
                self._evict()
        return True

    def _path(self, sha256: str, owner: str) -> Path:
        name = check_digest(sha256)
        if owner:
            name = hashlib.sha256(f"{owner}\0{sha256}".encode()).hexdigest()
        return self._folder / name[:2] / name

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _evict(self) -> None:
        """Bring the folder, as it is now, under the low-water mark."""
        entries = sorted(self._scan(), key=lambda entry: entry.used)
        self._held_bytes = sum(entry.size for entry in entries)
        if self._held_bytes <= self._budget:
            return
        for entry in entries:
            if self._held_bytes <= self._budget * _LOW_WATER:
                return
            with contextlib.suppress(OSError):
                entry.path.unlink()
                self._held_bytes -= entry.size
                self._counts["evicted"] += 1

    def _scan(self) -> list[_Entry]:
        """Every entry on disk; leftovers of writers that died are removed on the way."""
        entries = []
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if not path.name.startswith("."):
                    entries.append(_Entry(path, status.st_size, status.st_mtime))
                elif time.time() - status.st_mtime > STALE_TEMPORARY_S:
                    path.unlink()
        return entries

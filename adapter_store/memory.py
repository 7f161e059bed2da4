"""A store in this process's memory: the fake of the tests, as atomic as the real ones."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from adapter_store.errors import AlreadyExists, IntegrityError, NotFound
from adapter_store.layout import CHUNK_BYTES
from adapter_store.objects import ListPage, ObjectHead


class MemoryStore:
    """An ObjectStore in a dict; one lock makes every verb one step."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._bodies: dict[str, bytes] = {}
        self._heads: dict[str, ObjectHead] = {}

    def get(self, key: str) -> bytes:
        with self._lock:
            self._require(key)
            body = self._bodies[key]
        if len(body) > CHUNK_BYTES:
            raise IntegrityError(f"{key} has {len(body)} bytes; none is so large")
        return body

    def put_new(self, key: str, body: bytes) -> None:
        body = bytes(body)
        sha256 = hashlib.sha256(body).hexdigest()
        with self._lock:
            if key in self._bodies:
                raise AlreadyExists(f"{key} is taken")
            self._bodies[key] = body
            self._heads[key] = ObjectHead(key, len(body), sha256, self._clock())

    def head(self, key: str) -> ObjectHead:
        with self._lock:
            self._require(key)
            return self._heads[key]

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        with self._lock:
            keys = sorted(key for key in self._bodies if key.startswith(prefix))
            heads = {key: replace(self._heads[key], sha256=None) for key in keys}
        names = dict.fromkeys(_folded(key, prefix, delimiter) for key in keys)
        rest = [name for name in names if token is None or name > token]
        page, more = rest[:limit], len(rest) > limit
        return ListPage(
            heads=tuple(heads[name] for name in page if not _is_folder(name, prefix, delimiter)),
            folders=tuple(name for name in page if _is_folder(name, prefix, delimiter)),
            next_token=page[-1] if more else None,
        )

    def delete(self, key: str) -> None:
        with self._lock:
            self._bodies.pop(key, None)
            self._heads.pop(key, None)

    def _require(self, key: str) -> None:
        if key not in self._bodies:
            raise NotFound(f"{key} does not exist")


def _folded(key: str, prefix: str, delimiter: str) -> str:
    """`key`, or its common prefix up to the first delimiter after `prefix`."""
    if not delimiter or delimiter not in key[len(prefix) :]:
        return key
    return key[: key.index(delimiter, len(prefix)) + len(delimiter)]


def _is_folder(name: str, prefix: str, delimiter: str) -> bool:
    return bool(delimiter) and name.endswith(delimiter) and len(name) > len(prefix)

"""The truth of the simulated store: a bucket in a dict, watched at every change."""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import Callable

from adapter_store import layout
from adapter_store.errors import AlreadyExists, IntegrityError, NotFound
from adapter_store.objects import ListPage, ObjectHead


class Bucket:
    """An ObjectStore without faults; every verb is one step of the simulation."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: list[str] = []
        self._objects: dict[str, tuple[bytes, ObjectHead]] = {}
        self.on_put: Callable[[str, bytes], None] = lambda key, body: None
        self.on_delete: Callable[[str], None] = lambda key: None

    def copied_from(self, other: Bucket) -> Bucket:
        self._keys = list(other._keys)
        self._objects = dict(other._objects)
        return self

    def __contains__(self, key: str) -> bool:
        return key in self._objects

    def under(self, prefix: str) -> list[str]:
        """Every key with this prefix, in order."""
        start = bisect.bisect_left(self._keys, prefix)
        end = bisect.bisect_left(self._keys, prefix + "\U0010ffff", start)
        return self._keys[start:end]

    def get(self, key: str) -> bytes:
        body = self._find(key)[0]
        if len(body) > layout.CHUNK_BYTES:
            raise IntegrityError(f"nothing of ours is so large as {key}")
        return body

    def put_new(self, key: str, body: bytes) -> None:
        with self._lock:
            if key in self._objects:
                raise AlreadyExists(f"{key} is taken")
            self.write(key, bytes(body))

    def write(self, key: str, body: bytes) -> None:
        """Store without asking: what `put_new` does once the key is known to be free."""
        if key not in self._objects:
            bisect.insort(self._keys, key)
        sha256 = hashlib.sha256(body).hexdigest()
        self._objects[key] = body, ObjectHead(key, len(body), sha256, self._clock())
        self.on_put(key, body)

    def head(self, key: str) -> ObjectHead:
        return self._find(key)[1]

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        heads: list[ObjectHead] = []
        folders: list[str] = []
        last = ""
        for key in self.under(prefix):
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key[: cut + len(delimiter)] if cut >= 0 else key
            if name == last or (token is not None and name <= token):
                continue
            if len(heads) + len(folders) == limit:
                return ListPage(tuple(heads), tuple(folders), last)
            if cut >= 0:
                folders.append(name)
            else:
                heads.append(self._objects[key][1])
            last = name
        return ListPage(tuple(heads), tuple(folders), None)

    def delete(self, key: str) -> None:
        if self._objects.pop(key, None) is not None:
            del self._keys[bisect.bisect_left(self._keys, key)]
            self.on_delete(key)

    def _find(self, key: str) -> tuple[bytes, ObjectHead]:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFound(f"{key} does not exist") from None

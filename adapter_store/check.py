"""Does this store keep the promises the commit rests on? Asked at every start, in a second or two.

Some S3 lookalikes take `If-None-Match: *` and ignore it; publishing there would overwrite commits
in silence. The check tries what the protocol relies on, under `v1/check/`, and refuses.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from typing import Protocol, runtime_checkable

from adapter_store import layout
from adapter_store.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable, StoreUnfit
from adapter_store.objects import ObjectStore

RACERS = 4
RACE_S = 2.0
"""SeaweedFS answers the losers of a race in steps of a second; nobody waits for the last one."""


@runtime_checkable
class DamageProbe(Protocol):
    """A backend that can send a body which does not match its own checksum."""

    def accepts_damaged(self, key: str) -> bool:
        """Whether the store took it."""
        ...


def check_store(store: ObjectStore) -> None:
    """Return when `store` behaves. Raises StoreUnfit naming the fault, or what `store` raises."""
    keys = [layout.check_key(secrets.token_hex(16)) for _ in range(3)]
    try:
        _check_write_once(store, keys[0])
        _check_race(store, keys[1])
        if isinstance(store, DamageProbe) and store.accepts_damaged(keys[2]):
            raise StoreUnfit("the store accepts a body that does not match its sha256")
    finally:
        for key in keys:
            with contextlib.suppress(StoreError):
                store.delete(key)


def _check_write_once(store: ObjectStore, key: str) -> None:
    first, second = b"first " + key.encode(), b"second " + key.encode()
    store.put_new(key, first)
    if _read(store, key) != first:
        raise StoreUnfit("an object is not readable as written at once after its PUT")
    if key not in store.list(key).keys:
        raise StoreUnfit("an object is not listed at once after its PUT")
    head = store.head(key)
    if head.size != len(first) or head.sha256 not in (None, hashlib.sha256(first).hexdigest()):
        raise StoreUnfit("the store misreports an object's size or sha256")
    try:
        store.put_new(key, second)
    except AlreadyExists:
        pass
    else:
        raise StoreUnfit("the store ignores If-None-Match: * and overwrites an object")
    if _read(store, key) != first:
        raise StoreUnfit("a refused conditional PUT changed the object")


def _check_race(store: ObjectStore, key: str) -> None:
    """Of racing creators at most one may win, and its bytes are what is stored."""
    race = _Race(store, key)
    race.run()
    if len(race.winners) > 1:
        raise StoreUnfit(f"{len(race.winners)} of {RACERS} racing If-None-Match: * PUTs won")
    if not race.winners:
        raise StoreUnavailable(
            f"no racing PUT won within {RACE_S} s: {race.trouble or 'no answer'}"
        )
    if _read(store, key) != race.winners[0]:
        raise StoreUnfit("the stored bytes are not those of the race's only winner")


class _Race:
    """RACERS threads creating one key; daemon threads, so a slow answer holds up nobody."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._start = threading.Barrier(RACERS)
        self.winners: list[bytes] = []
        self.trouble: StoreError | None = None

    def run(self) -> None:
        racers = [
            threading.Thread(target=self._put, args=(f"racer {n}".encode(),), daemon=True)
            for n in range(RACERS)
        ]
        for racer in racers:
            racer.start()
        deadline = time.monotonic() + RACE_S
        for racer in racers:
            racer.join(max(0.0, deadline - time.monotonic()))

    def _put(self, body: bytes) -> None:
        self._start.wait()
        try:
            self._store.put_new(self._key, body)
        except AlreadyExists:
            return
        except StoreError as error:
            self.trouble = error
        else:
            self.winners.append(body)


def _read(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key)
    except NotFound:
        return b""

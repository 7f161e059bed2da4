"""Does this store keep the promises the commit rests on? Asked at every start, in a second or two.

Some S3 lookalikes take `If-None-Match: *` and ignore it; publishing there would overwrite commits
in silence. The check tries what the protocol relies on, under `v1/check/`, and refuses. It is the
short form: conformance.py asks the same questions hundreds of times.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from typing import Protocol, runtime_checkable

from adapter_store import layout
from adapter_store.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable, StoreUnfit
from adapter_store.objects import Damage, ObjectStore, listed

RACERS = 4
RACE_S = 2.0
"""How long the short form waits for a winner."""
LOSERS_S = 0.3
"""And then for another one. SeaweedFS answers losers in steps of a second; nobody waits for them:
a store that lets two win has let both write by then."""
LEFT_BEHIND_S = 120.0


@runtime_checkable
class DamageProbe(Protocol):
    """A backend that can send a body other than it announced."""

    def accepts_damaged(self, key: str, damage: Damage) -> bool:
        """Whether the store took it."""
        ...


def check_store(store: ObjectStore) -> None:
    """Return when `store` behaves. Raises StoreUnfit naming the fault, or what `store` raises."""
    keys = [layout.check_key(secrets.token_hex(16)) for _ in range(3)]
    race = Race(store, keys[1])
    try:
        now = check_write_once(store, keys[0])
        _check_race(store, race)
        if isinstance(store, DamageProbe):
            check_damage(store, keys[2], Damage.WRONG_SHA256)
        _sweep(store, now)
    finally:
        for key in (keys[0], keys[2]):
            with contextlib.suppress(StoreError):
                store.delete(key)
        race.clean()


def check_write_once(store: ObjectStore, key: str) -> float:
    """One object's life in good order; when the store says it was written."""
    first, second = b"first " + key.encode(), b"second " + key.encode()
    store.put_new(key, first)
    if read(store, key) != first:
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
    if read(store, key) != first:
        raise StoreUnfit("a refused conditional PUT changed the object")
    return head.modified


def check_damage(store: DamageProbe, key: str, damage: Damage) -> None:
    if store.accepts_damaged(key, damage):
        raise StoreUnfit(f"the store accepts {damage.value}")


def _check_race(store: ObjectStore, race: Race) -> None:
    """Of racing creators at most one may win, and its bytes are what is stored."""
    race.start()
    if race.wait_for_winner(RACE_S):
        race.wait_for_losers(LOSERS_S)
    judge_race(store, race, waited_s=RACE_S)


def judge_race(store: ObjectStore, race: Race, *, waited_s: float) -> None:
    """Raises StoreUnfit, and StoreUnavailable when nobody won."""
    winners = race.winners
    if len(winners) > 1:
        raise StoreUnfit(f"{len(winners)} of {RACERS} racing If-None-Match: * PUTs won")
    if not winners:
        raise StoreUnavailable(
            f"no racing PUT won within {waited_s:g} s: {race.trouble or 'no answer'}"
        )
    if read(store, race.key) != winners[0]:
        raise StoreUnfit("the stored bytes are not those of the race's only winner")


class Race:
    """RACERS threads creating one key; daemon threads, so a slow answer holds up nobody."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self.key = key
        self._start = threading.Barrier(RACERS)
        self._changed = threading.Condition()
        self._winners: list[bytes] = []
        self._answered = 0
        self._racers: list[threading.Thread] = []
        self.trouble: StoreError | None = None

    @property
    def winners(self) -> list[bytes]:
        with self._changed:
            return list(self._winners)

    def start(self) -> None:
        self._racers = [
            threading.Thread(target=self._put, args=(f"racer {n}".encode(),), daemon=True)
            for n in range(RACERS)
        ]
        for racer in self._racers:
            racer.start()

    def wait_for_winner(self, seconds: float) -> bool:
        """Whether somebody won; also returns when everybody was answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._winners or self._answered == RACERS, seconds)
            return bool(self._winners)

    def wait_for_losers(self, seconds: float) -> None:
        """Returns early when everybody was answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._answered == RACERS, seconds)

    def clean(self) -> None:
        """Delete the key when the last racer is answered: one that is not would win it anew."""
        if any(racer.is_alive() for racer in self._racers):
            threading.Thread(target=self._clean_up, daemon=True).start()
        elif self._racers:
            self._clean_up()

    def _clean_up(self) -> None:
        for racer in self._racers:
            racer.join()
        with contextlib.suppress(StoreError):
            self._store.delete(self.key)

    def _put(self, body: bytes) -> None:
        self._start.wait()
        won = False
        try:
            self._store.put_new(self.key, body)
            won = True
        except AlreadyExists:
            pass
        except StoreError as error:
            self.trouble = error
        finally:
            with self._changed:
                self._answered += 1
                if won:
                    self._winners.append(body)
                self._changed.notify_all()


def _sweep(store: ObjectStore, now: float) -> None:
    """Remove what earlier checks left: a process may end before its last racer is answered."""
    with contextlib.suppress(StoreError):
        for head in listed(store, layout.checks_prefix()):
            if now - head.modified > LEFT_BEHIND_S:
                store.delete(head.key)


def read(store: ObjectStore, key: str) -> bytes:
    """The bytes of a probe; none when it is not there."""
    try:
        return store.get(key)
    except NotFound:
        return b""

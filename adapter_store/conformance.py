"""The long form of the store's check: every promise asked for often enough to be believed.

write once        a taken key is refused and keeps its bytes
race              of RACERS creators of one key one wins, and its bytes stay
lost answer       a PUT whose answer nobody waits for lands once or not at all, never over another
list after put    a new object is listed at once, on every page, and no longer after its deletion
read after write  an object that was absent a moment ago is read as written
checksum          damaged bodies are refused, and nothing of them can be read
alias             a key that only looks like another one never changes what that one holds

Any endpoint will do. What the backend cannot try by itself is reported as skipped, never as passed.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from adapter_store import layout
from adapter_store.check import (
    RACERS,
    DamageProbe,
    Race,
    check_damage,
    check_write_once,
    judge_race,
    read,
)
from adapter_store.errors import AlreadyExists, StoreError, StoreRefused, StoreUnfit
from adapter_store.objects import Damage, ObjectStore, listed

ANSWER_S = 30.0
"""For the last loser of a race: SeaweedFS makes losers wait in steps of a second."""
_PARALLEL = 8
_ALIASES = ("a//b", "a/./b", "a/x/../b", "a/b/", "A/b", "a/B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often each promise is asked for."""

    writes: int = 20
    races: int = 200
    lost_answers: int = 50
    listings: int = 200
    reads: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """One promise that was kept every time."""

    name: str
    cases: int
    """0: this backend cannot try it."""
    seconds: float
    note: str = ""


@runtime_checkable
class LostAnswerProbe(Protocol):
    """A backend that can send a conditional PUT and not wait for its answer."""

    def put_unheard(self, key: str, body: bytes) -> None: ...


class Conformance:
    """One examination of one store; its probes lie under a folder of its own, removed at the end.

    Iterating asks promise after promise. Raises StoreUnfit naming the first fault, or what the
    store raises.
    """

    def __init__(self, store: ObjectStore, rounds: Rounds | None = None) -> None:
        self._store = store
        self._rounds = rounds or Rounds()
        self._folder = layout.check_key(secrets.token_hex(16))

    def __iter__(self) -> Iterator[Passed]:
        promises: tuple[tuple[str, Callable[[], tuple[int, str]]], ...] = (
            ("write once", self._write_once),
            ("race", self._races),
            ("lost answer", self._lost_answers),
            ("list after put", self._listings),
            ("read after write", self._reads),
            ("checksum", self._checksums),
            ("alias", self._aliases),
        )
        try:
            for name, ask in promises:
                started = time.monotonic()
                cases, note = ask()
                seconds = time.monotonic() - started
                yield Passed(name=name, cases=cases, seconds=seconds, note=note)
        finally:
            self._clean()

    def _write_once(self) -> tuple[int, str]:
        for key in self._keys("once", self._rounds.writes):
            check_write_once(self._store, key)
        return self._rounds.writes, ""

    def _races(self) -> tuple[int, str]:
        def race(key: str) -> None:
            racing = Race(self._store, key)
            racing.start()
            racing.wait_for_losers(ANSWER_S)
            judge_race(self._store, racing, waited_s=ANSWER_S)

        keys = self._keys("race", self._rounds.races)
        self._each(race, keys)
        return len(keys), f"{RACERS} at once"

    def _lost_answers(self) -> tuple[int, str]:
        """Another PUT settles the key: whoever holds it then holds it for good."""
        probe = self._store
        if not isinstance(probe, LostAnswerProbe):
            return 0, "this backend always waits for its answers"
        keys = self._keys("lost", self._rounds.lost_answers)
        held: dict[str, bytes] = {}
        for key in keys:
            body = b"unheard " + key.encode()
            probe.put_unheard(key, body)
            held[key] = self._settled(key, body)
        # Whatever was still on its way has arrived by now.
        for key, body in held.items():
            if read(self._store, key) != body:
                raise StoreUnfit("a PUT that arrived late overwrote the object that was there")
        landed = sum(body.startswith(b"unheard") for body in held.values())
        return len(keys), f"{landed} had landed, {len(keys) - landed} came too late"

    def _settled(self, key: str, unheard: bytes) -> bytes:
        fence = b"fence " + key.encode()
        try:
            self._store.put_new(key, fence)
        except AlreadyExists:
            if read(self._store, key) != unheard:
                raise StoreUnfit(
                    "a key is taken and does not hold what its only writer sent"
                ) from None
            return unheard
        if read(self._store, key) != fence:
            raise StoreUnfit("a PUT that arrived late overwrote the object that was there")
        return fence

    def _listings(self) -> tuple[int, str]:
        keys = self._keys("list", self._rounds.listings)
        for count, key in enumerate(keys):
            self._store.put_new(key, b"x")
            if key not in self._store.list(key).keys:
                raise StoreUnfit("an object is not listed at once after its PUT")
            if count % 20 == 0 and set(self._listed("list", 7)) != set(keys[: count + 1]):
                raise StoreUnfit("a listing in pages is not what was put, each object once")
        for key in keys[::2]:
            self._store.delete(key)
            if key in self._store.list(key).keys:
                raise StoreUnfit("an object is still listed after its deletion")
        return len(keys), ""

    def _reads(self) -> tuple[int, str]:
        def write_and_read(key: str) -> None:
            if read(self._store, key):
                raise StoreUnfit("a key that nobody wrote can be read")
            self._store.put_new(key, key.encode())
            if read(self._store, key) != key.encode():
                raise StoreUnfit("an object is not readable as written at once after its PUT")

        keys = self._keys("read", self._rounds.reads)
        self._each(write_and_read, keys)
        return len(keys), ""

    def _checksums(self) -> tuple[int, str]:
        if not isinstance(self._store, DamageProbe):
            return 0, "this backend cannot send a damaged body"
        keys = self._keys("damage", len(Damage))
        for key, damage in zip(keys, Damage, strict=True):
            check_damage(self._store, key, damage)
        # After the last one, so that what a store does behind its answer is done.
        for key, damage in zip(keys, Damage, strict=True):
            if read(self._store, key):
                raise StoreUnfit(f"the store refuses {damage.value} and stores it")
        return len(keys), ""

    def _aliases(self) -> tuple[int, str]:
        """No id holds what makes these; a store may treat them as it likes, but not overwrite."""
        notes = []
        for count, alias in enumerate(_ALIASES):
            folder = f"{self._folder}/alias-{count}/"
            plain, body = f"{folder}a/b", b"plain"
            self._store.put_new(plain, body)
            notes.append(f"{alias} {self._try_alias(folder + alias)}")
            if read(self._store, plain) != body:
                raise StoreUnfit(f"writing the key {alias!r} changed the object at 'a/b'")
        return len(_ALIASES), ", ".join(notes)

    def _try_alias(self, key: str) -> str:
        try:
            self._store.put_new(key, b"alias")
        except AlreadyExists:
            return "is a/b"
        except StoreRefused:
            return "is refused"
        return "is another key"

    def _keys(self, name: str, count: int) -> list[str]:
        return [f"{self._folder}/{name}/{number:04}" for number in range(count)]

    def _listed(self, name: str, page: int) -> Iterator[str]:
        token: str | None = None
        while True:
            found = self._store.list(f"{self._folder}/{name}/", limit=page, token=token)
            yield from found.keys
            token = found.next_token
            if token is None:
                return

    def _each(self, ask: Callable[[str], None], keys: Iterable[str]) -> None:
        with ThreadPoolExecutor(_PARALLEL, "conformance") as pool:
            for _ in pool.map(ask, keys):
                pass

    def _clean(self) -> None:
        with contextlib.suppress(StoreError):
            keys = [head.key for head in listed(self._store, f"{self._folder}/")]
            self._each(self._forget, keys)

    def _forget(self, key: str) -> None:
        with contextlib.suppress(StoreError):
            self._store.delete(key)

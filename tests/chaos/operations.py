"""What publishers, collectors and nodes do, one operation each, to be interrupted anywhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapter_store.bases import register_base
from adapter_store.cache import ContentCache
from adapter_store.commit import Limits, Published, Publisher
from adapter_store.coordination import Announcer, PublishLock
from adapter_store.errors import Conflict
from adapter_store.gc import Collector
from adapter_store.layout import AdapterRef
from adapter_store.memory import MemoryStore
from adapter_store.notify import HintStream
from adapter_store.objects import ObjectStore
from adapter_store.pins import pin
from adapter_store.reader import Reader
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.collecting import EAGER
from tests.adapter_store.faulty_store import FaultyStore, Killed, RacingStore
from tests.adapter_store.publishing import ADAPTER, REF, TENANT, View, adapter, publisher
from tests.adapter_store.scenes import SCENES, canary_beside_a_staged_version, published

LIMITS = Limits(publish_s=20.0, settle_s=10.0, parallel=1)
RACER = 9
"""Seed of what the racing publisher publishes, unless an operation has a worse one."""
_RIVAL = 8
_STOPPED, _STOPPED_LATER = "a" * 32, "b" * 32

Request = tuple[str, bytes]
"""A conditional PUT that is still on its way: key and body."""


class WrongBytes(AssertionError):
    """What a node was given to serve is no version that was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What one process works with."""

    store: ObjectStore
    rival: ObjectStore
    """The same store, as another process sees it."""
    lock: PublishLock
    announcer: Announcer
    hints: HintStream
    folder: Path
    """For the cache of content."""
    txids: list[str] = field(default_factory=list)
    """Every transaction id that was made here, in order."""

    def publisher(self, store: ObjectStore | None = None) -> Publisher:
        return Publisher(
            store or self.store,
            lock=self.lock,
            announcer=self.announcer,
            actor="test",
            warn=lambda text: None,
            limits=LIMITS,
            new_txid=self._new_txid,
        )

    def collector(self) -> Collector:
        return Collector(self.store, retention=EAGER, warn=lambda text: None, parallel=1)

    def _new_txid(self) -> str:
        self.txids.append(secrets.token_hex(16))
        return self.txids[-1]


Act = Callable[[Desk], Published | None]


@dataclass(frozen=True, slots=True)
class Operation:
    """A state, what is done in it, and what is then so."""

    start: Callable[[ObjectStore], Sequence[Request]]
    """Makes the state; the requests of dead publishers that may arrive at any time yet."""
    act: Act
    before: View
    after: View
    raced: View
    """After a racing publisher's commit and the operation on top of it."""
    on_the_way: tuple[View, ...] = ()
    """What others make of it while the operation runs."""
    racer: int = RACER
    commits: bool = True
    """Whether it is one transaction, whose id is the last that the desk gave out."""


def starting(operation: Operation) -> tuple[Mapping[str, bytes], Sequence[Request]]:
    """Every object of the state an operation starts from, and what is still on its way."""
    store = MemoryStore()
    register_base(store, CARD)
    late = operation.start(store)
    return {key: store.get(key) for key in store.list("").keys}, late


class Unheard(FaultyStore):
    """The process dies at its commit; the request arrives or stays on its way."""

    request: Request = ("", b"")

    def __init__(self, store: ObjectStore, *, arrives: bool) -> None:
        super().__init__(store)
        self._arrives = arrives

    def put_new(self, key: str, body: bytes) -> None:
        if "/log/" not in key:
            return super().put_new(key, body)
        self.request = (key, body)
        if self._arrives:
            super().put_new(key, body)
        raise Killed


def stop_at_commit(store: ObjectStore, seed: int, txid: str, *, arrives: bool = False) -> Request:
    """A publish of `seed` whose process died there; its last request."""
    unheard = Unheard(store, arrives=arrives)
    try:
        publisher(unheard, new_txid=lambda: txid).publish(TENANT, ADAPTER, adapter(seed))
    except Killed:
        return unheard.request
    raise AssertionError("it outlived its commit")


def _settled(*, landed: bool) -> Callable[[ObjectStore], Sequence[Request]]:
    def start(store: ObjectStore) -> Sequence[Request]:
        published(1)(store)
        return [stop_at_commit(store, 2, _STOPPED, arrives=landed)]

    return start


def _two_stopped(store: ObjectStore) -> Sequence[Request]:
    """One intent whose slot another took, and one whose slot is free."""
    published(1)(store)
    first = stop_at_commit(store, 3, _STOPPED)
    published(4)(store)
    return [first, stop_at_commit(store, 2, _STOPPED_LATER)]


def _quiet(start: Callable[[ObjectStore], object]) -> Callable[[ObjectStore], Sequence[Request]]:
    def started(store: ObjectStore) -> Sequence[Request]:
        start(store)
        return []

    return started


def _scene(name: str, raced: View) -> Operation:
    scene = SCENES[name]
    return Operation(
        _quiet(scene.start),
        lambda desk: scene.act(desk.publisher()),
        scene.before,
        scene.after,
        raced,
    )


def overtaken_publish(desk: Desk) -> Published:
    """Another commits first, so that this one is rebased and tried again."""
    rival = publisher(desk.rival)
    overtaken = RacingStore(
        desk.store, lambda: rival.publish(TENANT, ADAPTER, adapter(_RIVAL)), at="/log/"
    )
    return desk.publisher(overtaken).publish(TENANT, ADAPTER, adapter(2))


def activate_next(desk: Desk) -> Published:
    return desk.publisher().activate(TENANT, ADAPTER, label="next")


def settle_stopped(desk: Desk) -> Published | None:
    try:
        return desk.publisher().settle(TENANT, ADAPTER, _STOPPED)
    except Conflict:
        return None


def collect(desk: Desk) -> None:
    desk.collector().collect(TENANT)


def reap(desk: Desk) -> None:
    """As it is done every day, and then at once."""
    desk.collector().reap(TENANT, older_s=3600.0)
    desk.collector().reap(TENANT, older_s=0.0)


def pin_first(desk: Desk) -> None:
    ref = AdapterRef(TENANT, ADAPTER, label="v1")
    pin(desk.store, Reader(desk.store).resolve(ref))


def serve(desk: Desk) -> None:
    """A node loads an adapter, hears of a new version and loads that; its cache holds one."""
    largest = max(len(body) for seed in (1, 2) for body in adapter(seed).files.values())
    cache = ContentCache(desk.folder, budget_bytes=largest * 5 // 4)
    reader = Reader(desk.store, cache=cache, parallel=1)
    desk.hints.poll(0.0)
    load(reader)
    rival = publisher(desk.rival, announcer=desk.announcer)
    rival.publish(TENANT, ADAPTER, adapter(2))
    desk.hints.poll(0.0)
    load(reader)
    load(reader)


def load(reader: Reader) -> None:
    """Raises WrongBytes unless every file is as it was published."""
    found = reader.resolve(REF)
    files = reader.fetch(TENANT, found.version, adapter=ADAPTER)
    if not any(adapter(seed).files == files for seed in range(12)):
        raise WrongBytes(f"generation {found.gen} was loaded with other bytes")


OPERATIONS: dict[str, Operation] = {
    "first publish": _scene("first publish", View(2)),
    "publish": _scene("publish over another", View(2)),
    "overtaken publish": Operation(
        _quiet(published(1)), overtaken_publish, View(1), View(2), View(2), (View(_RIVAL),)
    ),
    "rollback": _scene("rollback", View(2)),
    "stage": _scene("stage", View(RACER, staged=2)),
    "activate": Operation(
        _quiet(canary_beside_a_staged_version),
        activate_next,
        SCENES["activate"].before,
        View(2),
        View(2),
    ),
    "split": _scene("split", View(RACER, split=((1, 1), (1, 2)))),
    "delete": _scene("delete", View()),
    "settle, never arrived": Operation(
        _settled(landed=False), settle_stopped, View(1), View(1), View(RACER), commits=False
    ),
    "settle, landed": Operation(
        _settled(landed=True), settle_stopped, View(2), View(2), View(RACER), commits=False
    ),
    "collect": Operation(
        _quiet(published(1, 3, 2)), collect, View(2), View(2), View(1), racer=1, commits=False
    ),
    "reap": Operation(_two_stopped, reap, View(4), View(4), View(RACER), commits=False),
    "pin": Operation(
        _quiet(published(1, 2)), pin_first, View(2), View(2), View(RACER), commits=False
    ),
    "serve": Operation(
        _quiet(published(1)), serve, View(1), View(2), View(2), (View(2),), commits=False
    ),
}

"""T8: whatever befalls Redis, no acknowledged change is lost and nodes stay within their bound.

Six conditions, and in each of them four things at work on adapters of their own: a publish, a
rollback, a node's swap and a collection. All four are brought to their decisive moment (the commit
is about to be sent, the collector has chosen what to condemn), then Redis is struck, then a rival
does the same to the same adapter, and only then do they go on. The controls take away what makes
this safe: a store that ignores `If-None-Match`, a collector that does not look again, a node that
takes a dead Redis for one without news.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from adapter_store.commit import Published, Publisher
from adapter_store.coordination import NoAnnouncer, NoLock
from adapter_store.embedded import EmbeddedStack
from adapter_store.errors import Conflict, LockLost, StoreError
from adapter_store.gc import Collector
from adapter_store.locks import lock_key, open_lock
from adapter_store.notify import open_announcer
from adapter_store.objects import ListPage, ObjectHead, ObjectStore
from adapter_store.reader import Reader
from adapter_store.redis_client import open_redis
from adapter_store.retention import Retention
from adapter_store.settings import Endpoints
from adapter_store.validate import LocalAdapter
from tests.adapter_store.faulty_store import OverwritingStore, RacingStore
from tests.adapter_store.publishing import adapter
from tests.chaos.bench import Bench
from tests.chaos.node import DEAF
from tests.chaos.nodes import ChaosNode, Place, TinyBase, running_nodes
from tests.chaos.redis_troubles import (
    TROUBLES,
    Trouble,
    failed_over,
    flushed,
    killed,
)
from tests.chaos.row import Row
from tests.chaos.streams import lost_or_torn
from tests.conftest import open_endpoint

WORKS = ("publish", "rollback", "swap", "collection")
SHORT = (killed, flushed)
"""The conditions of a run below half the scale."""
_MEET_S = 30.0
_SERVED_S = 60.0

Condition = Callable[[EmbeddedStack], AbstractContextManager[Trouble]]
Action = Callable[[Publisher, str], Published]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one kind of work in one condition."""

    broken: tuple[str, ...] = ()
    publish_s: float = 0.0
    """How long a publish took that began after the strike."""
    stale_s: float = 0.0
    """How long after its commit the node served it."""
    same_fence: bool = False
    """The rival committed under the very fence with which another held the lock."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """A node with Redis, one without, and one with a bug."""

    base: TinyBase
    hinted: ChaosNode
    unhinted: ChaosNode
    deaf: ChaosNode

    def content(self, name: str, number: int) -> LocalAdapter:
        return self.base.adapter(10_000 + 10 * zlib.crc32(name.encode()) % 1_000_000 + number)


def run(scale: float, seed: int, bench: Bench) -> Row:
    conditions = TROUBLES if scale >= 0.5 else SHORT
    with bench.own_stack() as stack, fleet(stack, bench.folder) as nodes:
        outcomes: dict[str, dict[str, Outcome]] = {}
        deaf_noticed = False
        for condition in conditions:
            with condition(stack) as trouble:
                outcomes[trouble.name] = strike(trouble, nodes)
                if condition is killed:
                    deaf_noticed = not hears(nodes.deaf, "swap-killed", 2)
        with failed_over(stack) as trouble:
            overwritten = contend(trouble, "control", publish_two, lambda: None, OverwritingStore)
        blind = collect_beside_a_publish(stack.endpoints, "blind", lambda: None, LooksOnce)
    every = {
        f"{name}, {work}": outcome
        for name, works in outcomes.items()
        for work, outcome in works.items()
    }
    return Row(
        id="T8",
        cases=len(every),
        unit="Redis cases",
        violations=[f"{name}: {text}" for name, one in every.items() for text in one.broken],
        controls={
            "a store that ignores If-None-Match": any("lost" in t for t in overwritten.broken),
            "a collector that does not look again": bool(blind.broken),
            "a node that takes a dead Redis for a quiet one": deaf_noticed,
        },
        faults={f"Redis {name}": 1 for name in outcomes},
        seeds=str(seed),
        figures={
            **{f"stale_s, {name}": round(one["swap"].stale_s, 2) for name, one in outcomes.items()},
            **{
                f"publish_s, {name}": round(one["swap"].publish_s, 2)
                for name, one in outcomes.items()
            },
            "rivals under the fence of the holder": sum(one.same_fence for one in every.values()),
        },
        notes=f"{len(conditions)} of {len(TROUBLES)} conditions, {len(WORKS)} works in each",
    )


@contextlib.contextmanager
def fleet(stack: EmbeddedStack, folder: Path) -> Iterator[Fleet]:
    base, here = TinyBase(folder), stack.endpoints
    places = [Place(here), Place(replace(here, redis_url="")), Place(here, DEAF)]
    with running_nodes(base.checkpoint, places) as (hinted, unhinted, deaf):
        yield Fleet(base, hinted, unhinted, deaf)


def strike(trouble: Trouble, nodes: Fleet) -> dict[str, Outcome]:
    """The four kinds of work at once, struck at their decisive moment."""
    moment = threading.Barrier(len(WORKS) + 1)

    def meet() -> None:
        """Everybody is here, and then: Redis has been struck."""
        moment.wait(_MEET_S)
        moment.wait(_MEET_S)

    word = trouble.name.split()[0]
    with ThreadPoolExecutor(len(WORKS)) as pool:
        started: dict[str, Future[Outcome]] = {
            "publish": pool.submit(contend, trouble, f"publish-{word}", publish_two, meet),
            "rollback": pool.submit(contend, trouble, f"rollback-{word}", roll_back, meet),
            "swap": pool.submit(swap, trouble, f"swap-{word}", nodes, meet),
            "collection": pool.submit(collect_beside_a_publish, trouble.rival, f"gc-{word}", meet),
        }
        # On this thread: what it starts anew would die with a worker's.
        with contextlib.suppress(threading.BrokenBarrierError):
            moment.wait(_MEET_S)
            trouble.strike()
            moment.wait(_MEET_S)
        return {work: one.result() for work, one in started.items()}


def publish_two(publisher: Publisher, name: str) -> Published:
    return publisher.publish("default", name, adapter(2))


def roll_back(publisher: Publisher, name: str) -> Published:
    return publisher.rollback("default", name, to="v1")


def contend(
    trouble: Trouble,
    name: str,
    action: Action,
    meet: Callable[[], None],
    wrapped: Callable[[ObjectStore], ObjectStore] = lambda store: store,
) -> Outcome:
    """`action` holds the lock; a rival publishes between the strike and its commit."""
    store = open_endpoint(trouble.holder)
    before = publisher_at(trouble.holder, store)
    acknowledged = [before.publish("default", name, adapter(seed)) for seed in (0, 1)]
    broken: list[str] = []

    fences: list[int] = []

    def act() -> None:
        fences.extend(fence_held(trouble.holder, name))
        meet()
        rival = publisher_at(trouble.rival, wrapped(open_endpoint(trouble.rival)))
        done = rival.publish("default", name, adapter(3))
        acknowledged.append(done)
        fences.append(Reader(store).record("default", name, done.gen).fence)

    try:
        ours = publisher_at(trouble.holder, RacingStore(wrapped(store), act))
        acknowledged.append(action(ours, name))
    except (Conflict, LockLost):
        pass
    except StoreError as error:
        broken.append(f"{type(error).__name__}: {error}")
    broken += lost_or_torn(store, acknowledged) + broken_chain(store, name)
    if not broken:
        acknowledged.append(before.publish("default", name, adapter(4)))
        broken += lost_or_torn(store, acknowledged)
    return Outcome(tuple(broken), same_fence=len(fences) > len(set(fences)))


def swap(trouble: Trouble, name: str, nodes: Fleet, meet: Callable[[], None]) -> Outcome:
    """A node serves the name; what is published after the strike has to reach it in time."""
    node = nodes.hinted if trouble.holder.redis_url else nodes.unhinted
    store = open_endpoint(trouble.holder)
    first = publisher_at(trouble.holder, store).publish("default", name, nodes.content(name, 1))
    for one in (node, nodes.deaf):
        one.until(name, first.gen).result(_SERVED_S)
    meet()
    committed: list[float] = []
    timed = RacingStore(store, lambda: committed.append(time.monotonic()))
    served = node.until(name, first.gen + 1)
    began = time.monotonic()
    second = publisher_at(trouble.rival, timed).publish("default", name, nodes.content(name, 2))
    publish_s = time.monotonic() - began
    stale_s = served.result(_SERVED_S)["at"] - committed[0]
    broken = [*lost_or_torn(store, [first, second]), *node.regressions()]
    if stale_s > trouble.stale_s:
        broken.append(f"the node was stale for {stale_s:.1f} s, over {trouble.stale_s:.0f} s")
    return Outcome(tuple(broken), publish_s=publish_s, stale_s=stale_s)


def hears(node: ChaosNode, name: str, gen: int) -> bool:
    """Whether the node serves that generation by now."""
    return int(node.ask(name, min_generation=0)["gen"]) >= gen


def collect_beside_a_publish(
    endpoints: Endpoints,
    tenant: str,
    meet: Callable[[], None],
    wrapped: Callable[[ObjectStore], ObjectStore] = lambda store: store,
) -> Outcome:
    """A collector is about to condemn old content; a publisher makes that content current."""
    store = open_endpoint(endpoints)
    publisher = publisher_at(endpoints, store)
    for seed in (0, 1, 2):
        publisher.publish(tenant, "collected", adapter(seed))
    acknowledged: list[Published] = []

    def act() -> None:
        meet()
        acknowledged.append(publisher.publish(tenant, "collected", adapter(0)))

    collector = Collector(
        RacingStore(wrapped(store), act, at="/gc/"),
        retention=Retention(keep=1, younger_s=0.0),
        warn=lambda text: None,
    )
    broken: list[str] = []
    try:
        collected = collector.collect(tenant)
    except StoreError as error:
        broken.append(f"{type(error).__name__}: {error}")
    else:
        if not collected.deleted:
            broken.append("the collector left all garbage where it was")
    return Outcome((*broken, *lost_or_torn(store, acknowledged)))


def publisher_at(endpoints: Endpoints, store: ObjectStore) -> Publisher:
    url = endpoints.redis_url
    return Publisher(
        store,
        lock=open_lock(url) if url else NoLock(),
        announcer=open_announcer(url) if url else NoAnnouncer(),
        actor="chaos",
        warn=lambda text: None,
    )


def broken_chain(store: ObjectStore, name: str) -> list[str]:
    try:
        list(Reader(store).history("default", name))
    except StoreError as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def fence_held(endpoints: Endpoints, name: str) -> list[int]:
    """The fence under which this Redis has granted the adapter's lock, if it has."""
    if not endpoints.redis_url:
        return []
    with open_redis(endpoints.redis_url) as client:
        return [int(str(client.get(lock_key("default", name))).rpartition(":")[2])]


class LooksOnce:
    """The bug of a collector that believes its first look at the log."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._seen: dict[tuple[str, str, str | None], ListPage] = {}

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        look = (prefix, delimiter, token)
        if look not in self._seen:
            page = self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)
            self._seen[look] = page
        return self._seen[look]

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        self._store.put_new(key, body)

    def head(self, key: str) -> ObjectHead:
        return self._store.head(key)

    def delete(self, key: str) -> None:
        self._store.delete(key)

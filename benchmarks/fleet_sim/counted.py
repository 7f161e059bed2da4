"""S3 and Redis requests of one act each, counted on SeaweedFS and Valkey."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from redis import Redis

from adapter_store.commit import Publisher
from adapter_store.embedded import EmbeddedStack
from adapter_store.fleet import Copy, Holding, NodeCard, Standing, State
from adapter_store.layout import DEFAULT_TENANT, AdapterRef
from adapter_store.locks import open_lock
from adapter_store.meter import MeteredStore
from adapter_store.notify import HintStream, open_announcer, open_hints
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.redis_client import open_redis
from adapter_store.registry import open_registry
from adapter_store.settings import Endpoints, StoreSettings
from adapter_store.validate import LocalAdapter, read_adapter_dir
from benchmarks.wide_adapter import card, write_adapter

POLL_S = 0.5
"""A node's watcher asks Redis for news this long at a time (inference_node/adapters/watcher.py)."""
_POLLS = 8
_NAME = "counted"
_DIGEST = "0" * 64
_HELD = Holding(DEFAULT_TENANT, _NAME, 1, _DIGEST, {_DIGEST: Copy("v1", Standing.DEVICE)})
_CARD = NodeCard(
    id="counted",
    address="127.0.0.1:50051",
    base=_DIGEST,
    model="counted",
    state=State.READY,
    adapters=1,
    residency=_DIGEST,
    resident=1,
    running=0,
    waiting=0,
    pages_free=0,
    pages_total=1,
    generated_tokens=0,
    completed=0,
    failed=0,
)


@dataclass(frozen=True, slots=True)
class Requests:
    """Of one kind of act: S3 requests by method, and Redis commands."""

    s3: Mapping[str, int]
    redis: int = 0

    @property
    def reads(self) -> int:
        """Priced as GET."""
        return self.s3.get("get", 0) + self.s3.get("head", 0)

    @property
    def writes(self) -> int:
        """Priced as PUT, as listing is; deleting is free."""
        return self.s3.get("put_new", 0) + self.s3.get("list", 0)

    @property
    def total(self) -> int:
        return sum(self.s3.values())


@dataclass(frozen=True, slots=True)
class Acts:
    """What each act sends."""

    publish: Requests
    """A next version, lock and hint included."""
    resolve_cold: Requests
    """A name that the node never heard of."""
    refresh: Requests
    """Of a name that it knows, without news."""
    learn: Requests
    """Of a name that it knows, with one new record."""
    fetch: Requests
    """A version's content."""
    poll: Requests
    """A node waits for hints once."""
    announce: Requests
    """A node renews its lease in the fleet."""
    tell: Requests
    """A node tells the fleet of one adapter that came and one that went."""


def count(*, mib: int) -> Acts:
    """On services of its own, with adapters of `mib` MiB."""
    with tempfile.TemporaryDirectory(prefix="lorapool-count-") as folder:
        base = card(mib)
        first, second = (
            read_adapter_dir(write_adapter(Path(folder) / str(i), modules=mib, seed=i), card=base)
            for i in (1, 2)
        )
        with EmbeddedStack(Path(folder) / "services") as stack:
            return _count(stack.endpoints, first, second)


def _count(endpoints: Endpoints, first: LocalAdapter, second: LocalAdapter) -> Acts:
    endpoints = replace(endpoints, s3_bucket=f"count-{secrets.token_hex(4)}")
    store = MeteredStore(_open(endpoints))
    redis = open_redis(endpoints.redis_url)
    # Its connections greet Redis when they are opened.
    _commands(redis, lambda: None)
    ref = AdapterRef(DEFAULT_TENANT, _NAME)

    def counted(act: Callable[[], object]) -> Requests:
        before = store.counts
        commands = _commands(redis, act)
        return Requests(dict(store.counts - before), commands)

    publisher = _publisher(endpoints, store)
    publisher.publish(DEFAULT_TENANT, _NAME, first)
    reader = Reader(store)
    cold = counted(lambda: reader.resolve(ref))
    refresh = counted(lambda: reader.resolve(ref))
    publish = counted(lambda: publisher.publish(DEFAULT_TENANT, _NAME, second))
    learn = counted(lambda: reader.resolve(ref))
    found = reader.resolve(ref, refresh=False)
    fetch = counted(lambda: reader.fetch(DEFAULT_TENANT, found.version))
    hints = open_hints(endpoints.redis_url)
    hints.poll(0.0)
    polls = counted(lambda: _poll(hints))
    poll = Requests({}, round(polls.redis / _POLLS))
    registry = open_registry(endpoints.redis_url)
    registry.nodes()
    announce = counted(lambda: registry.announce(_CARD))
    tell = counted(lambda: registry.tell(_CARD.id, [_HELD], [(DEFAULT_TENANT, "gone")]))
    return Acts(publish, cold, refresh, learn, fetch, poll, announce, tell)


def _poll(hints: HintStream) -> None:
    for _ in range(_POLLS):
        hints.poll(0.05)


def _open(endpoints: Endpoints) -> ObjectStore:
    store = StoreSettings.model_validate(asdict(endpoints)).open_store()
    store.ensure_bucket()
    return store


def _publisher(endpoints: Endpoints, store: ObjectStore) -> Publisher:
    return Publisher(
        store,
        lock=open_lock(endpoints.redis_url),
        announcer=open_announcer(endpoints.redis_url),
        actor="fleet_sim",
        warn=_fail,
    )


def _fail(message: str) -> None:
    raise SystemExit(f"the services are not well: {message}")


def _commands(redis: Redis, act: Callable[[], object]) -> int:
    """Commands that clients send meanwhile; what a script calls inside Redis is no request."""
    mark = secrets.token_hex(8)
    with redis.monitor() as monitor:  # type: ignore[no-untyped-call]
        act()
        redis.echo(mark)
        seen = 0
        for command in monitor.listen():
            if mark in command["command"]:
                return seen
            seen += command["client_type"] != "lua"
    raise AssertionError("MONITOR ended before it was left")

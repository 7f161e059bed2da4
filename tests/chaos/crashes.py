"""One process, killed at one of its operations, and all that has to be so afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from redis import Redis

from adapter_store import fsck
from adapter_store.errors import AlreadyExists, StoreError
from adapter_store.findings import Severity
from adapter_store.locks import RedisLock, lock_key
from adapter_store.notify import HintStream, RedisAnnouncer
from adapter_store.objects import ListPage, ObjectHead, ObjectStore
from adapter_store.redis_client import open_redis
from adapter_store.settings import Endpoints
from tests.adapter_store.publishing import ADAPTER, TENANT, View, adapter, broken_promises, view
from tests.chaos.io_points import Hook, Moment, WatchedStore, watch_files, watched_redis
from tests.chaos.operations import OPERATIONS, Desk, Operation, Request, starting
from tests.conftest import open_endpoint

NO_REDIS = "redis://127.0.0.1:1/0"
"""Nobody listens there."""
_ENDS_S = 60.0


class Setting(Enum):
    ALONE = "alone"
    RACED = "with a racing publisher"
    NO_REDIS = "without Redis"


@dataclass(frozen=True, slots=True)
class Case:
    """Where one process dies."""

    operation: str
    at: int
    point: str
    moment: Moment
    setting: Setting

    def __str__(self) -> str:
        where = f"{self.operation}, {self.setting.value}"
        return f"{where}, killed {self.moment.value} {self.at} ({self.point})"


class Rooted:
    """The part of a store below one folder, as a store of its own."""

    def __init__(self, store: ObjectStore, root: str) -> None:
        self._store = store
        self._root = f"{root}/"

    def get(self, key: str) -> bytes:
        return self._store.get(self._root + key)

    def put_new(self, key: str, body: bytes) -> None:
        self._store.put_new(self._root + key, body)

    def head(self, key: str) -> ObjectHead:
        return replace(self._store.head(self._root + key), key=key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        page = self._store.list(self._root + prefix, delimiter=delimiter, limit=limit, token=token)
        return ListPage(
            tuple(replace(h, key=h.key.removeprefix(self._root)) for h in page.heads),
            tuple(folder.removeprefix(self._root) for folder in page.folders),
            page.next_token,
        )

    def delete(self, key: str) -> None:
        self._store.delete(self._root + key)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended."""

    killed: bool
    error: str
    """What it raised, by type and message; empty for nothing."""
    typed: bool
    seen: tuple[str, ...]
    """Its operations, unless it was killed."""


class Lane:
    """Where cases are played one after another: a part of a bucket each, a Redis database.

    Its process has a single thread when it forks. The clients that the children use are made and
    not used before, so that no connection is shared.
    """

    def __init__(self, endpoints: Endpoints, folder: Path) -> None:
        self._endpoints = endpoints
        self._folder = folder
        self._store = open_endpoint(endpoints)
        self._unused = open_endpoint(endpoints)
        self._redis: Redis = open_redis(endpoints.redis_url)
        self._starts: dict[str, tuple[Mapping[str, bytes], Sequence[Request]]] = {}
        self._cases = 0
        # Redis knows the scripts from here on, so that no child has to send them first.
        lock = RedisLock(self._redis).acquire(TENANT, "warm", floor=0)
        assert lock is not None
        lock.release()
        RedisAnnouncer(self._redis).announce(TENANT, "warm", 1)

    def record(self, name: str, setting: Setting) -> Ending:
        """A clean run."""
        play = self._play(name, setting)
        return in_a_child(play.act_hooked(lambda arrive: Hook()), at_point=lambda: None)

    def wrong(self, case: Case) -> list[str]:
        """Kill a process as the case says; what is then not as it has to be, in words."""
        play = self._play(case.operation, case.setting)
        race = play.race if case.setting is Setting.RACED else lambda: None
        ending = in_a_child(
            play.act_hooked(lambda arrive: Hook(at=case.at, moment=case.moment, arrive=arrive)),
            at_point=race,
        )
        if ending.killed:
            found = play.judge()
        else:
            found = [f"was not killed; it raised {ending.error or 'nothing'}"]
        return [f"{case}: {text}" for text in (*play.troubles, *found)]

    def _play(self, name: str, setting: Setting) -> Play:
        self._cases += 1
        if name not in self._starts:
            self._starts[name] = starting(OPERATIONS[name])
        objects, late = self._starts[name]
        root = f"case-{os.getpid()}-{id(self):x}-{self._cases}"
        store = Rooted(self._store, root)
        for key, body in objects.items():
            store.put_new(key, body)
        self._redis.flushdb()
        return Play(
            OPERATIONS[name],
            setting,
            store=store,
            unused=Rooted(self._unused, root),
            redis_url=NO_REDIS if setting is Setting.NO_REDIS else self._endpoints.redis_url,
            redis=self._redis,
            folder=self._folder / root,
            late=late,
        )


class Play:
    """One operation in a part of the store of its own."""

    def __init__(
        self,
        operation: Operation,
        setting: Setting,
        *,
        store: ObjectStore,
        unused: ObjectStore,
        redis_url: str,
        redis: Redis,
        folder: Path,
        late: Sequence[Request],
    ) -> None:
        self._operation = operation
        self._setting = setting
        self._store = store
        self._unused = unused
        self._redis_url = redis_url
        self._redis = redis
        self._folder = folder
        self._late = late
        self.troubles: list[str] = []

    def act_hooked(
        self, hooked: Callable[[Callable[[], None]], Hook]
    ) -> Callable[[Callable[[], None]], Hook]:
        """What the child does: given how to tell that it arrived, it gives back its hook."""

        def act(arrive: Callable[[], None]) -> Hook:
            hook = hooked(arrive)
            desk = _desk(
                WatchedStore(self._unused, hook),
                self._unused,
                watched_redis(self._redis_url, hook),
                self._folder,
            )
            watch_files(self._folder, hook)
            self._operation.act(desk)
            hook.finish()
            return hook

        return act

    def race(self) -> None:
        """A whole publish by another process than the child; it waits for no lock."""
        with self._told("the racing publisher"):
            desk = self._desk(wait_s=0.0)
            desk.publisher().publish(TENANT, ADAPTER, adapter(self._operation.racer))

    def judge(self) -> list[str]:
        """After the kill, after the same command again, and after everything was cleared up."""
        raced = self._setting is Setting.RACED
        allowed = [View(self._operation.racer)]
        if not raced:
            between = self._operation.on_the_way
            allowed = [self._operation.before, self._operation.after, *between]
        wrong = [f"after the kill {text}" for text in self._unlike(allowed)]
        # The dead process holds its lease for another half minute; here that passes at once.
        self._redis.pexpire(lock_key(TENANT, ADAPTER), 1)
        with self._told("the re-run"):
            self._operation.act(self._desk())
        wanted = self._operation.raced if raced else self._operation.after
        wrong += [f"after the re-run {text}" for text in self._unlike([wanted])]
        with self._told("the clearing up"):
            self._clear_up()
        wrong += [
            f"when all was cleared up {text}" for text in self._unlike([wanted], spotless=True)
        ]
        return wrong + broken_promises(self._store)

    def _unlike(self, allowed: Sequence[View], *, spotless: bool = False) -> list[str]:
        try:
            found = view(self._store)
        except StoreError as error:
            return [f"what is current is not whole: {error}"]
        wrong = [] if found in allowed else [f"it is {found}"]
        for finding in fsck.Examination(self._store, TENANT, parallel=1):
            if spotless or finding.severity is Severity.ERROR:
                wrong.append(f"fsck finds {finding.kind.value}: {finding.message}")
        return wrong

    def _clear_up(self) -> None:
        """Reap and collect everything; then what was still on its way arrives."""
        collector = self._desk().collector()
        collector.reap(TENANT, older_s=0.0)
        collector.collect(TENANT)
        for key, body in self._late:
            with contextlib.suppress(AlreadyExists):
                self._store.put_new(key, body)

    def _desk(self, *, wait_s: float = 20.0) -> Desk:
        client = open_redis(self._redis_url)
        return _desk(self._store, self._store, client, self._folder, wait_s=wait_s)

    @contextlib.contextmanager
    def _told(self, who: str) -> Iterator[None]:
        """Whatever `who` raises is a trouble."""
        try:
            yield
        except Exception as error:
            self.troubles.append(f"{who} raised {type(error).__name__}: {error}")


def _desk(
    store: ObjectStore, rival: ObjectStore, redis: Redis, folder: Path, *, wait_s: float = 20.0
) -> Desk:
    return Desk(
        store=store,
        rival=rival,
        lock=RedisLock(redis, wait_s=wait_s),
        announcer=RedisAnnouncer(redis),
        hints=HintStream(redis),
        folder=folder,
    )


def in_a_child(
    act: Callable[[Callable[[], None]], Hook], *, at_point: Callable[[], None]
) -> Ending:
    """Fork; the child acts and may be killed. `at_point` runs here while it waits at its point."""
    heard, tells = os.pipe()
    waits, goes_on = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(heard)
        os.close(goes_on)
        _act_and_exit(act, tells, waits)
    os.close(tells)
    os.close(waits)
    try:
        said = _listen(heard, goes_on, at_point)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(heard)
        os.close(goes_on)
        _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Ending(True, "", True, ())
    told: dict[str, Any] = json.loads(said)
    return Ending(False, told["error"], told["typed"], tuple(told["seen"]))


def _act_and_exit(act: Callable[[Callable[[], None]], Hook], tells: int, waits: int) -> None:
    told: dict[str, Any] = {"error": "", "typed": True, "seen": []}

    def arrive() -> None:
        os.write(tells, b"!")
        os.read(waits, 1)

    try:
        told["seen"] = act(arrive).seen
    except BaseException as error:
        told["error"] = f"{type(error).__name__}: {error}"
        told["typed"] = isinstance(error, StoreError)
    finally:
        os.write(tells, json.dumps(told).encode())
        os._exit(0)


def _listen(heard: int, goes_on: int, at_point: Callable[[], None]) -> bytes:
    """What the child tells until it ends."""
    said = b""
    deadline = time.monotonic() + _ENDS_S
    while True:
        ready, _, _ = select.select([heard], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"the child does not end within {_ENDS_S:.0f} s")
        part = os.read(heard, 65536)
        if part == b"!":
            at_point()
            os.write(goes_on, b"!")
        elif part:
            said += part
        else:
            return said

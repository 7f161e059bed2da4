"""A node that does nothing by itself: real engine, real model, and a test that says what is next.

No thread runs and no clock ticks. What the engine's thread would do is `turn`, what a worker would
do is `work`, in any order that a pool of workers allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from adapter_store.coordination import Hint
from adapter_store.errors import StoreUnavailable
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage, ObjectHead
from adapter_store.reader import Reader
from inference_node.adapters.versions import Resident, VersionKey
from inference_node.engine.build import assemble
from tests.chaos.stateful.memory import Memory
from tests.chaos.stateful.shelf import Shelf

START = 1000.0


class Door:
    """The node's way to the store, with trouble in it."""

    def __init__(self, store: MemoryStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self.down = False
        self.fail_next = 0
        """So many requests from now on are not answered."""
        self.damage_next = 0
        """So many chunks from now on arrive with a byte changed."""
        self.troubled_at = -1e9
        """When a request last went unanswered."""
        self.away = False
        """As far as the last request could tell."""
        self.damaged: set[str] = set()
        """sha256 of every chunk that ever arrived damaged."""
        self.damages = self.refused = 0

    def get(self, key: str) -> bytes:
        self._meet_trouble()
        body = self._store.get(key)
        if "/blob/" in key and self.damage_next:
            self.damage_next -= 1
            self.damages += 1
            self.damaged.add(key.rsplit("/", 1)[-1].partition(".")[0])
            return bytes([body[0] ^ 1]) + body[1:]
        return body

    def head(self, key: str) -> ObjectHead:
        self._meet_trouble()
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        self._meet_trouble()
        return self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def put_new(self, key: str, body: bytes) -> None:
        raise AssertionError("a node writes nothing")

    def delete(self, key: str) -> None:
        raise AssertionError("a node deletes nothing")

    def _meet_trouble(self) -> None:
        if self.down or self.fail_next:
            self.fail_next = max(0, self.fail_next - 1)
            self.refused += 1
            self.troubled_at, self.away = self._clock(), True
            raise StoreUnavailable("the store does not answer")
        self.away = False


class Workers(Executor):
    """A pool whose jobs are done one by one, when somebody says so."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._jobs: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._jobs.append(lambda: fn(*args, **kwargs))
        return Future()

    @property
    def begun(self) -> int:
        """Jobs that may be the next to end: as many as there are threads."""
        return min(self._threads, len(self._jobs))

    def end(self, place: int) -> None:
        self._jobs.pop(place)()


@dataclass
class News:
    """Hints that arrived and were not looked at."""

    healthy: bool = True
    gaps: int = 0
    hints: list[Hint] = field(default_factory=list)

    def poll(self, timeout_s: float, /) -> Sequence[Hint]:
        raise AssertionError("the watcher has no thread here")


class Node:
    """One engine over one store."""

    def __init__(self, shelf: Shelf, store: MemoryStore) -> None:
        self.now = START
        self.door = Door(store, self.clock)
        self.news = News()
        self.workers: list[Workers] = []
        self.copy_fails_next = self.copies_failed = 0
        self.copy_failed_at = -1e9
        self.forced: dict[tuple[str, str], float] = {}
        """When an operator last unloaded this adapter by force."""
        self.fills: list[VersionKey] = []
        """Every version that was copied into pages, in order."""
        self.engine = assemble(
            shelf.model,
            shelf.config,
            reader=Reader(self.door, clock=self.clock, parallel=1),
            hints=self.news,
            clock=self.clock,
            executor=self._employ,
        )
        self.memory = Memory(shelf, self.engine._runner._pool, self._copy)

    def clock(self) -> float:
        return self.now

    @property
    def jobs(self) -> int:
        """Jobs that may be the next to end."""
        return sum(workers.begun for workers in self.workers)

    def turn(self) -> bool:
        """One turn of the engine's thread; True when nothing could run."""
        self.now += 0.001
        return self.engine._turn()

    def work(self, choice: int) -> None:
        """One of the jobs under way comes to its end."""
        choice %= self.jobs
        for workers in self.workers:
            if choice < workers.begun:
                workers.end(choice)
                return
            choice -= workers.begun

    def look_for_news(self) -> None:
        """A turn of the watcher's thread."""
        hints, self.news.hints = self.news.hints, []
        self.engine._watcher.turn(hints)

    def residents(self) -> list[Resident]:
        """All that hold pages."""
        return self.engine._slots.holders()

    def _copy(self, staged: Resident) -> None:
        if self.copy_fails_next:
            self.copy_fails_next -= 1
            self.copy_failed_at = self.now
            self.copies_failed += 1
            raise RuntimeError("the copy to the device failed")
        self.fills.append(staged.key)

    def _employ(self, threads: int, name: str) -> Executor:
        self.workers.append(Workers(threads))
        return self.workers[-1]

"""T7: a store killed ten times in a stream of publishes keeps every commit it acknowledged.

SIGKILL ends the store at random moments of four publishers' work. After every restart each commit
acknowledged before it is read back: its record, and every byte of its content; in the end the
whole logs, and what became of each publish that got no answer. The control is a store that
answers before it writes.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapter_store.embedded import EmbeddedStack
from adapter_store.errors import AlreadyExists, NotFound
from adapter_store.objects import ListPage, ObjectHead, ObjectStore
from adapter_store.reader import Reader
from adapter_store.settings import S3_SERVICE
from tests.adapter_store.waiting import wait_until
from tests.chaos.bench import Bench
from tests.chaos.row import Row
from tests.chaos.streams import TENANT, Stream, broken_log, lost_or_torn
from tests.conftest import open_endpoint

COMMITS, KILLS = 1000, 10
STREAMS = 4
_STALLED_S = 120.0


def run(scale: float, seed: int, bench: Bench) -> Row:
    kills = max(1, round(KILLS * min(1.0, scale)))
    wanted = max(30, round(COMMITS * scale))
    with bench.own_stack() as stack:
        stores = [open_endpoint(stack.endpoints) for _ in range(STREAMS)]
        streams = [Stream(n, store, bench.folder) for n, store in enumerate(stores)]
        broken = kill_and_read_back(stack, streams, kills, wanted, random.Random(seed))
        unknown = [len(stream.unknown) for stream in streams]
        for stream in streams:
            stream.settle()
            broken += [*stream.troubles, *broken_log(open_endpoint(stack.endpoints), stream)]
        forgetting = forgetting_is_noticed(stack, bench.folder)
        tearing = tearing_is_noticed(open_endpoint(stack.endpoints), streams[0])
    acknowledged = sum(len(stream.acknowledged) for stream in streams)
    if acknowledged < wanted:
        broken.append(f"only {acknowledged} commits were acknowledged, of {wanted}")
    return Row(
        id="T7",
        cases=acknowledged,
        unit="acknowledged commits",
        violations=broken,
        controls={
            "a store that answers before it writes": forgetting,
            "a commit whose content is torn": tearing,
        },
        faults={"kill -9 of the store": kills},
        seeds=str(seed),
        figures={
            "outcomes_unknown_then_settled": sum(unknown),
            "settled_as_never": sum(len(stream.refused) for stream in streams),
            "failed": sum(stream.failed for stream in streams),
        },
        notes=f"{STREAMS} publishers; every byte read back after each restart",
    )


def kill_and_read_back(
    stack: EmbeddedStack, streams: Sequence[Stream], kills: int, wanted: int, rng: random.Random
) -> list[str]:
    """Commits missing after some restart."""
    broken: list[str] = []
    store = open_endpoint(stack.endpoints)
    read_back = [0] * len(streams)
    with publishing(streams) as count:
        for kill in range(1, kills + 1):
            due = round(wanted * (kill - 0.5 * rng.random()) / kills)
            wait_until(lambda due=due: count() >= due, within_s=_STALLED_S)
            stack.kill(S3_SERVICE)
            promised = [list(stream.acknowledged) for stream in streams]
            stack.restart(S3_SERVICE)
            for place, promises in enumerate(promised):
                broken += lost_or_torn(store, promises[read_back[place] :])
                read_back[place] = len(promises)
        wait_until(lambda: count() >= wanted, within_s=_STALLED_S)
    return broken


@contextlib.contextmanager
def publishing(streams: Sequence[Stream]) -> Iterator[Callable[[], int]]:
    """The streams at work for the block; gives how many commits they have had acknowledged."""
    stop = threading.Event()

    def count() -> int:
        assert not any(stream.troubles for stream in streams), streams[0].troubles
        return sum(len(stream.acknowledged) for stream in streams)

    with ThreadPoolExecutor(len(streams)) as pool:
        working = [pool.submit(stream.publish_until, stop) for stream in streams]
        try:
            yield count
        finally:
            stop.set()
    for one in working:
        one.result()


def forgetting_is_noticed(stack: EmbeddedStack, folder: Path) -> bool:
    """The control: the same kill and the same reading back, of a store that answers early."""
    store = open_endpoint(stack.endpoints)
    early = AnswersEarly(store)
    stream = Stream(99, early, folder)
    for _ in range(AnswersEarly.HELD + 2):
        stream.publish()
    stack.kill(S3_SERVICE)
    early.lose_memory()
    stack.restart(S3_SERVICE)
    broken = lost_or_torn(store, stream.acknowledged)
    return len(broken) == AnswersEarly.HELD


def tearing_is_noticed(store: ObjectStore, stream: Stream) -> bool:
    """The control: a chunk that lost its second half."""
    last = stream.acknowledged[-1:]
    version = Reader(store).record(TENANT, stream.name, last[0].gen).active
    assert version is not None
    key = max(version.files, key=lambda file: file.size).chunks[0].key
    body = store.get(key)
    store.delete(key)
    store.put_new(key, body[: len(body) // 2])
    return len(lost_or_torn(store, last)) == 1


class AnswersEarly:
    """Keeps the last few commits in memory and says that they are stored."""

    HELD = 3

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._held: dict[str, bytes] = {}

    def lose_memory(self) -> None:
        self._held.clear()

    def get(self, key: str) -> bytes:
        return self._held[key] if key in self._held else self._store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        if "/log/" not in key:
            return self._store.put_new(key, body)
        if key in self._held or self._is_stored(key):
            raise AlreadyExists(key)
        self._held[key] = body
        if len(self._held) > self.HELD:
            oldest = next(iter(self._held))
            self._store.put_new(oldest, self._held.pop(oldest))

    def head(self, key: str) -> ObjectHead:
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        page = self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)
        held = [
            ObjectHead(key, len(body), None, time.time())
            for key, body in self._held.items()
            if key.startswith(prefix)
        ]
        heads = sorted((*held, *page.heads), key=lambda head: head.key)
        return ListPage(tuple(heads[:limit]), page.folders, page.next_token)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def _is_stored(self, key: str) -> bool:
        try:
            self._store.head(key)
        except NotFound:
            return False
        return True

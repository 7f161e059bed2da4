"""A publisher or reader as a process: told of an adapter, it plays its part in its history.

    python -m tests.chaos.log_client p0

reads one `Task` a line from stdin and answers each with one line: the operations it did, timed by
the host's monotonic clock, which all processes share. It plays as many tasks at once as it is
given, and ends with its stdin. The store and Redis are those of the environment. Several names,
p for a publisher and r for a reader, make it play several parts at once.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from adapter_store.commit import Limits, Publisher
from adapter_store.coordination import NoLock, PublishLock
from adapter_store.draft import local_content
from adapter_store.errors import (
    Conflict,
    IntegrityError,
    LockLost,
    NotFound,
    OutcomeUnknown,
    StoreUnavailable,
)
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.settings import load_settings
from tests.adapter_store.publishing import adapter
from tests.chaos.linearizability import Answer, Operation

PUBLISHER, READER = "p", "r"
TENANT = "default"
PUBLISHES, READS = 3, 4
"""Of one publisher, each after a read; of one reader."""
LIMITS = Limits(publish_s=4.0, settle_s=1.0)
"""Short enough that an outage leaves some outcomes unknown."""
_LANES = 16
_PATIENCE_S = 60.0
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Task:
    """One adapter's history to take part in."""

    history: int
    adapter: str
    locked: bool
    s3_endpoint: str
    """Which way to the store: through a proxy of the row's choice."""


def main(names: Sequence[str]) -> None:
    settings = load_settings()
    lock = settings.open_lock()
    for name in names:
        for number in range(PUBLISHES):
            adapter(_seed(name, number))
    speaking = threading.Lock()

    @cache
    def store(s3_endpoint: str) -> ObjectStore:
        return settings.model_copy(update={"s3_endpoint": s3_endpoint}).open_store()

    def play(name: str, task: Task) -> None:
        try:
            held = lock if task.locked else NoLock()
            client = Client(store(task.s3_endpoint), held, name, task)
            operations = client.publishing() if name[0] == PUBLISHER else client.reading()
            answer: dict[str, Any] = {"operations": [_as_json(one) for one in operations]}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with speaking:
            print(json.dumps({"history": task.history, **answer}), flush=True)

    with ThreadPoolExecutor(_LANES * len(names)) as lanes:
        for line in sys.stdin:
            for name in names:
                lanes.submit(play, name, Task(**json.loads(line)))


class Client:
    """One client in one history."""

    def __init__(self, store: ObjectStore, lock: PublishLock, name: str, task: Task) -> None:
        self._store = store
        self._name = name
        self._adapter = task.adapter
        self._publisher = Publisher(
            store, lock=lock, actor=name, warn=lambda text: None, limits=LIMITS
        )

    def publishing(self) -> Iterator[Operation]:
        """Reads with a reader that knows nothing, so by listing, then publishes on top of that."""
        for number in range(PUBLISHES):
            seen = self._read(Reader(self._store))
            yield seen
            if seen.answer is Answer.DAMAGED:
                return
            yield self._publish(seen.gen, _seed(self._name, number))

    def reading(self) -> Iterator[Operation]:
        """Reads as a node does, from the generation it knows upwards."""
        reader = Reader(self._store)
        for _ in range(READS):
            yield self._read(reader)

    def _read(self, reader: Reader) -> Operation:
        """A read that got no answer says nothing and is not part of the history."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            invoked, answer = time.monotonic(), Answer.READ
            try:
                record = reader.head(TENANT, self._adapter)
                gen, vdig = record.gen, record.active.vdig if record.active else ""
            except NotFound:
                gen, vdig = 0, ""
            except IntegrityError:
                answer, gen, vdig = Answer.DAMAGED, 0, ""
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)
                continue
            return Operation(
                client=self._name,
                answer=answer,
                invoked=invoked,
                returned=time.monotonic(),
                gen=gen,
                vdig=vdig,
            )

    def _publish(self, expected: int, seed: int) -> Operation:
        content = adapter(seed)
        called = Operation(
            client=self._name,
            answer=Answer.OK,
            invoked=time.monotonic(),
            returned=0.0,
            gen=0,
            vdig=local_content(content, None).vdig,
            expected=expected,
        )
        try:
            done = self._publisher.publish(TENANT, self._adapter, content, expect_gen=expected)
        except Conflict:
            called = replace(called, answer=Answer.CONFLICT)
        except OutcomeUnknown:
            called = replace(called, answer=Answer.UNKNOWN)
        except (StoreUnavailable, LockLost):
            called = replace(called, answer=Answer.FAILED)
        except IntegrityError:
            called = replace(called, answer=Answer.DAMAGED)
        else:
            called = replace(called, gen=done.gen)
        return replace(called, returned=time.monotonic())


def _seed(name: str, number: int) -> int:
    """Content that no other publish of the history has."""
    return 100 + 10 * int(name[1:]) + number


def _as_json(one: Operation) -> dict[str, Any]:
    return {**asdict(one), "answer": one.answer.value}


def operation(value: dict[str, Any]) -> Operation:
    """The inverse of what a client prints."""
    return Operation(**{**value, "answer": Answer(value["answer"])})


if __name__ == "__main__":
    main(sys.argv[1:])

"""Every input and output of one process, in order: to record it, to stop at it, to die at it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from redis import Redis

from adapter_store.objects import ListPage, ObjectHead, ObjectStore
from adapter_store.redis_client import open_redis

_T = TypeVar("_T")
_KNOWN = Path(__file__).with_name("io_points.json")
_FILE_EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.utime",
}


class Moment(Enum):
    BEFORE = "before"
    AFTER = "after"


class Hook:
    """Stands around each operation of the main thread; at number `at` it kills the process.

    `arrive` is called there first: what it does has happened when the operation begins. What a
    lease's own thread does is timed, not ordered, and goes by uncounted.
    """

    def __init__(
        self,
        *,
        at: int | None = None,
        moment: Moment = Moment.BEFORE,
        arrive: Callable[[], None] = lambda: None,
    ) -> None:
        self._at = at
        self._moment = moment
        self._arrive = arrive
        self._doomed = False
        self.seen: list[str] = []

    def around(self, name: str, act: Callable[[], _T]) -> _T:
        if not self._is_fatal(name):
            return act()
        try:
            return act()
        finally:
            die()

    def event(self, name: str) -> None:
        """An operation that is about to happen and cannot be stood around.

        To die after it is to die before whatever comes next.
        """
        self._doomed = self._is_fatal(name) or self._doomed

    def finish(self) -> None:
        """The work is done."""
        if self._doomed:
            die()

    def _is_fatal(self, name: str) -> bool:
        """Whether the process dies after this one."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self.finish()
        self.seen.append(name)
        if len(self.seen) - 1 != self._at:
            return False
        self._arrive()
        if self._moment is Moment.BEFORE:
            die()
        return True


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


class WatchedStore:
    """An ObjectStore whose every verb the hook stands around."""

    def __init__(self, store: ObjectStore, hook: Hook) -> None:
        self._store = store
        self._hook = hook

    def get(self, key: str) -> bytes:
        return self._hook.around(f"get {folder_of(key)}", lambda: self._store.get(key))

    def put_new(self, key: str, body: bytes) -> None:
        self._hook.around(f"put {folder_of(key)}", lambda: self._store.put_new(key, body))

    def head(self, key: str) -> ObjectHead:
        return self._hook.around(f"head {folder_of(key)}", lambda: self._store.head(key))

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return self._hook.around(
            f"list {folder_of(prefix)}",
            lambda: self._store.list(prefix, delimiter=delimiter, limit=limit, token=token),
        )

    def delete(self, key: str) -> None:
        self._hook.around(f"delete {folder_of(key)}", lambda: self._store.delete(key))


def folder_of(key: str) -> str:
    """What kind of object a key or prefix is about."""
    if "/log/" in key:
        return "log"
    parts = key.split("/")
    return parts[3] if parts[1] == "t" else parts[1]


def watched_redis(url: str, hook: Hook) -> Redis:
    """A client whose every command the hook stands around."""
    client = open_redis(url)
    send = client.execute_command

    def execute(*command: Any, **options: Any) -> Any:
        return hook.around(f"redis {_named(command)}", lambda: send(*command, **options))

    client.execute_command = execute  # type: ignore[method-assign]
    return client


def _named(command: tuple[Any, ...]) -> str:
    verb = str(command[0]).lower()
    if verb != "evalsha":
        return verb
    keys = command[3 : 3 + int(command[2])]
    return f"{verb} {'+'.join(str(key).rpartition(':')[2] for key in keys)}"


def watch_files(folder: Path, hook: Hook) -> None:
    """From now on every change below `folder`, and every file opened there; lasts for good."""
    below = f"{folder}{os.sep}"
    flush = os.fsync

    def heard(event: str, details: tuple[Any, ...]) -> None:
        if event in _FILE_EVENTS and str(details[0]).startswith(below):
            mode = f" {details[1]}" if event == "open" else ""
            hook.event(f"file {event.removeprefix('os.')}{mode}")

    def fsync(file: int) -> None:
        hook.around("file fsync", lambda: flush(file))

    sys.addaudithook(heard)
    os.fsync = fsync  # type: ignore[assignment]


def known_points() -> dict[str, list[str]]:
    """The committed list: what each operation is known to do, in order."""
    value: dict[str, list[str]] = json.loads(_KNOWN.read_text())
    return value


def write_known(points: Mapping[str, list[str]]) -> None:
    _KNOWN.write_text(json.dumps(points, indent=1) + "\n")


def uncovered(found: Mapping[str, list[str]], known: Mapping[str, list[str]]) -> list[str]:
    """Where what was recorded and the committed list differ, in words."""
    wrong = []
    for name in sorted({*found, *known}):
        now, before = found.get(name, []), known.get(name, [])
        if now != before:
            place = next(
                (n for n, (a, b) in enumerate(zip(now, before, strict=False)) if a != b),
                min(len(now), len(before)),
            )
            there = now[place] if place < len(now) else "nothing"
            listed = before[place] if place < len(before) else "nothing"
            wrong.append(
                f"{name}: operation {place} is {there}, the list has {listed}; "
                "look at the new case, then `python -m tests.chaos.crash_points` writes the list"
            )
    return wrong

"""Stores that fail on purpose, at one chosen operation or in one chosen way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from adapter_store.errors import AlreadyExists, OutcomeUnknown, StoreUnavailable
from adapter_store.objects import ListPage, ObjectHead, ObjectStore

_T = TypeVar("_T")


class Killed(BaseException):
    """The process died here; nothing it holds may touch the store again."""


class Fault(Enum):
    KILL_BEFORE = "killed before the operation"
    KILL_AFTER = "killed after the operation"
    LOST_REQUEST = "sent, never arrived"
    LOST_ANSWER = "applied, the answer lost"
    LATE = "sent, applied only much later"
    UNAVAILABLE = "answered 503"


class FaultyStore:
    """Passes operations on until number `at` (from 0), and meets `fault` there.

    With `puts_only` the count runs over `put_new` alone. `operations` names every one seen, so a
    clean run tells how many points there are to fail at.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        at: int | None = None,
        fault: Fault = Fault.KILL_BEFORE,
        puts_only: bool = False,
        lasts: int = 1,
    ) -> None:
        self._store = store
        self._at = range(0) if at is None else range(at, at + lasts)
        self._fault = fault
        self._puts_only = puts_only
        self._lock = threading.Lock()
        self._dead = False
        self.operations: list[str] = []
        self.late: list[Callable[[], None]] = []
        self.bounced: list[Exception] = []

    def get(self, key: str) -> bytes:
        return self._call("get", key, lambda: self._store.get(key))

    def put_new(self, key: str, body: bytes) -> None:
        self._call("put_new", key, lambda: self._store.put_new(key, body))

    def head(self, key: str) -> ObjectHead:
        return self._call("head", key, lambda: self._store.head(key))

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return self._call(
            "list",
            prefix,
            lambda: self._store.list(prefix, delimiter=delimiter, limit=limit, token=token),
        )

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._store.delete(key))

    def _call(self, verb: str, key: str, act: Callable[[], _T]) -> _T:
        if not self._meets_fault(verb, key):
            return act()
        match self._fault:
            case Fault.KILL_BEFORE:
                self._die()
            case Fault.KILL_AFTER:
                self._after(act)
                self._die()
            case Fault.LOST_REQUEST:
                self._no_answer(verb)
            case Fault.LOST_ANSWER:
                self._after(act)
                self._no_answer(verb)
            case Fault.LATE:
                self.late.append(lambda: self._after(act))
                self._no_answer(verb)
        raise StoreUnavailable("503")

    def _meets_fault(self, verb: str, key: str) -> bool:
        with self._lock:
            if self._dead:
                raise Killed
            if self._puts_only and verb != "put_new":
                return False
            self.operations.append(f"{verb} {key}")
            return len(self.operations) - 1 in self._at

    def _after(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self.bounced.append(error)

    def _die(self) -> None:
        with self._lock:
            self._dead = True
        raise Killed

    def _no_answer(self, verb: str) -> None:
        if verb == "put_new":
            raise OutcomeUnknown("no answer")
        raise StoreUnavailable("no answer")


class RacingStore(FaultyStore):
    """Lets `act` happen once, right before the first `put_new` of a key with `at` in it."""

    def __init__(self, store: ObjectStore, act: Callable[[], object], *, at: str = "/log/") -> None:
        super().__init__(store)
        self._act: Callable[[], object] | None = act
        self._where = at

    def put_new(self, key: str, body: bytes) -> None:
        if self._act is not None and self._where in key:
            act, self._act = self._act, None
            act()
        super().put_new(key, body)


class OverwritingStore:
    """The seeded bug of a store that ignores `If-None-Match`: the last writer wins."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        while "/log/" in key:
            self._store.delete(key)
            try:
                return self._store.put_new(key, body)
            except AlreadyExists:
                continue
        return self._store.put_new(key, body)

    def head(self, key: str) -> ObjectHead:
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def delete(self, key: str) -> None:
        self._store.delete(key)

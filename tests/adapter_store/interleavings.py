"""Every order in which processes can use one store, tried on the real code.

A process is a function of a store. It is deterministic, so what it does next depends only on the
answers it got so far: it is run again from its beginning with those answers, up to its next
request. A state is what the store holds and the answers each process got; every state that can be
reached is visited once. A crash needs no event of its own: a process that goes no further has
crashed, and what must hold after a crash must hold in every state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from adapter_store.errors import AlreadyExists, NotFound, StoreError
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage, ObjectHead, ObjectStore

Process = Callable[[ObjectStore], object]
Answer = tuple[str, object]


@dataclass(frozen=True)
class Request:
    """One store operation that a process waits for."""

    verb: str
    key: str
    body: bytes = b""
    delimiter: str = ""
    limit: int = 1000
    token: str | None = None

    def __str__(self) -> str:
        return f"{self.verb} {self.key}"


class _Waits(BaseException):
    def __init__(self, request: Request) -> None:
        self.request = request


class _Replay:
    """Answers from a process's past, and stops it at its first new request."""

    def __init__(self, past: tuple[Answer, ...]) -> None:
        self._past = list(reversed(past))

    def get(self, key: str) -> bytes:
        body = self._answer(Request("get", key))
        assert isinstance(body, bytes)
        return body

    def put_new(self, key: str, body: bytes) -> None:
        self._answer(Request("put_new", key, bytes(body)))

    def head(self, key: str) -> ObjectHead:
        head = self._answer(Request("head", key))
        assert isinstance(head, ObjectHead)
        return head

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        page = self._answer(Request("list", prefix, b"", delimiter, limit, token))
        assert isinstance(page, ListPage)
        return page

    def delete(self, key: str) -> None:
        self._answer(Request("delete", key))

    def _answer(self, request: Request) -> object:
        if not self._past:
            raise _Waits(request)
        kind, value = self._past.pop()
        if kind == "found":
            return value
        raise {"NotFound": NotFound, "AlreadyExists": AlreadyExists}[kind](str(value))


class Stored:
    """What a store holds, as a value; equal contents are equal."""

    def __init__(self, bodies: Mapping[str, bytes]) -> None:
        self.bodies = dict(bodies)
        self.identity = frozenset(
            (key, hashlib.sha256(body).digest()) for key, body in self.bodies.items()
        )

    def store(self) -> MemoryStore:
        store = MemoryStore(clock=lambda: 0.0)
        for key, body in self.bodies.items():
            store.put_new(key, body)
        return store

    def after(self, request: Request) -> tuple[Stored, Answer]:
        store, key = self.store(), request.key
        try:
            match request.verb:
                case "get":
                    return self, ("found", store.get(key))
                case "head":
                    return self, ("found", store.head(key))
                case "list":
                    page = store.list(
                        key,
                        delimiter=request.delimiter,
                        limit=request.limit,
                        token=request.token,
                    )
                    return self, ("found", page)
                case "put_new":
                    store.put_new(key, request.body)
                    return Stored({**self.bodies, key: request.body}), ("found", None)
        except (NotFound, AlreadyExists) as error:
            return self, (type(error).__name__, str(error))
        return Stored({k: v for k, v in self.bodies.items() if k != key}), ("found", None)


@dataclass
class Explored:
    """What a search saw."""

    states: int = 0
    ends: int = 0
    """States in which every process had finished."""
    outcomes: set[str] = field(default_factory=set)
    """How processes ended: `name: returned` or the error they raised."""
    violation: str = ""
    trace: tuple[str, ...] = ()
    """The steps that led to the violation."""


class Explorer:
    """Visits every state that `processes` can reach from `start`, and asks `broken` about each."""

    def __init__(
        self,
        start: Mapping[str, bytes],
        processes: Mapping[str, Process],
        broken: Callable[[Mapping[str, bytes]], str],
    ) -> None:
        self._start = Stored(start)
        self._processes = dict(processes)
        self._broken = broken
        self._next: dict[tuple[str, int], Request | str] = {}
        self._pasts: dict[tuple[str, tuple[Answer, ...]], int] = {}

    def explore(self, *, most: int = 1_000_000) -> Explored:
        """Depth first; stops at the first violation, fails past `most` states."""
        seen: set[object] = set()
        found = Explored()
        todo: list[tuple[Stored, dict[str, tuple[Answer, ...]], tuple[str, ...]]] = [
            (self._start, dict.fromkeys(self._processes, ()), ())
        ]
        while todo:
            stored, pasts, trace = todo.pop()
            identity = (stored.identity, tuple(self._number(n, p) for n, p in pasts.items()))
            if identity in seen:
                continue
            seen.add(identity)
            found.states += 1
            assert found.states <= most, f"more than {most} states"
            found.violation = self._broken(stored.bodies)
            if found.violation:
                found.trace = trace
                return found
            steps = list(self._steps(stored, pasts, trace, found))
            found.ends += not steps
            todo += steps
        return found

    def _steps(
        self,
        stored: Stored,
        pasts: dict[str, tuple[Answer, ...]],
        trace: tuple[str, ...],
        found: Explored,
    ) -> Iterator[tuple[Stored, dict[str, tuple[Answer, ...]], tuple[str, ...]]]:
        for name, past in pasts.items():
            request = self._request(name, past)
            if isinstance(request, str):
                found.outcomes.add(f"{name}: {request}")
                continue
            then, answer = stored.after(request)
            yield then, {**pasts, name: (*past, answer)}, (*trace, f"{name}: {request}")

    def _number(self, name: str, past: tuple[Answer, ...]) -> int:
        """Equal pasts have equal numbers: shorter to compare than what they hold."""
        return self._pasts.setdefault((name, past), len(self._pasts))

    def _request(self, name: str, past: tuple[Answer, ...]) -> Request | str:
        """What the process asks next, or how it ended."""
        number = (name, self._number(name, past))
        if number not in self._next:
            try:
                self._processes[name](_Replay(past))
            except _Waits as waits:
                self._next[number] = waits.request
            except StoreError as error:
                self._next[number] = type(error).__name__
            else:
                self._next[number] = "returned"
        return self._next[number]

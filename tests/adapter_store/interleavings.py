"""Every order in which processes can use one store, tried on the real code.

A process is a function of a store. It is deterministic, so what it does next depends only on the
answers it got so far: it is run again from its beginning with those answers, up to its next
request. A state is what the store holds and the answers each process got; every state that can be
reached is visited once. A crash needs no event of its own: a process that goes no further has
crashed, and what must hold after a crash must hold in every state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from adapter_store.errors import AlreadyExists, NotFound, StoreError
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage, ObjectHead, ObjectStore

Process = Callable[[ObjectStore], object]
Answer = tuple[str, object]
_State = tuple["Stored", tuple[int, ...], tuple[str, ...]]
"""What the store holds, the number of each process's past, and the steps that led there."""


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
    """Answers from a process's past, given last first, and stops it at its first new request."""

    def __init__(self, past: tuple[Answer, ...]) -> None:
        self._past = list(past)

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
    """What a store holds; equal contents have equal identities."""

    def __init__(self, bodies: Mapping[str, bytes]) -> None:
        self.bodies = dict(bodies)
        self.identity = frozenset(self.bodies.items())

    def after(self, request: Request) -> tuple[Mapping[str, bytes], Answer]:
        """What it holds then, and what is answered."""
        store, key = self._store(), request.key
        try:
            match request.verb:
                case "get":
                    return self.bodies, ("found", store.get(key))
                case "head":
                    return self.bodies, ("found", store.head(key))
                case "list":
                    page = store.list(
                        key,
                        delimiter=request.delimiter,
                        limit=request.limit,
                        token=request.token,
                    )
                    return self.bodies, ("found", page)
                case "put_new":
                    store.put_new(key, request.body)
                    return {**self.bodies, key: request.body}, ("found", None)
        except (NotFound, AlreadyExists) as error:
            return self.bodies, (type(error).__name__, str(error))
        return {k: v for k, v in self.bodies.items() if k != key}, ("found", None)

    def _store(self) -> MemoryStore:
        store = MemoryStore(clock=lambda: 0.0)
        for key, body in self.bodies.items():
            store.put_new(key, body)
        return store


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
        self._processes = dict(processes)
        self._broken = broken
        self._stores: dict[frozenset[tuple[str, bytes]], Stored] = {}
        self._afters: dict[tuple[Stored, Request], tuple[Stored, Answer]] = {}
        self._start = self._stored(start)
        self._next: dict[tuple[str, int], Request | str] = {}
        self._pasts: list[tuple[int, Answer]] = [(0, ("found", None))]
        """By number: the number of the past before its last answer, and that answer; 0 is none."""
        self._numbers: dict[tuple[int, Answer], int] = {}

    def explore(self, *, most: int = 1_000_000) -> Explored:
        """Depth first; stops at the first violation, fails past `most` states."""
        seen: set[tuple[Stored, tuple[int, ...]]] = set()
        found = Explored()
        todo: list[_State] = [(self._start, (0,) * len(self._processes), ())]
        while todo:
            state = todo.pop()
            stored, pasts, trace = state
            if (stored, pasts) in seen:
                continue
            seen.add((stored, pasts))
            found.states += 1
            assert found.states <= most, f"more than {most} states"
            found.violation = self._broken(stored.bodies)
            if found.violation:
                found.trace = trace
                return found
            steps = list(self._steps(state, found))
            found.ends += not steps
            todo += steps
        return found

    def _steps(self, state: _State, found: Explored) -> Iterator[_State]:
        stored, pasts, trace = state
        for place, name in enumerate(self._processes):
            request = self._request(name, pasts[place])
            if isinstance(request, str):
                found.outcomes.add(f"{name}: {request}")
                continue
            then, answer = self._after(stored, request)
            longer = self._number(pasts[place], answer)
            after = (*pasts[:place], longer, *pasts[place + 1 :])
            yield then, after, (*trace, f"{name}: {request}")

    def _stored(self, bodies: Mapping[str, bytes]) -> Stored:
        """The one object for equal contents."""
        stored = Stored(bodies)
        return self._stores.setdefault(stored.identity, stored)

    def _after(self, stored: Stored, request: Request) -> tuple[Stored, Answer]:
        if (stored, request) not in self._afters:
            bodies, answer = stored.after(request)
            then = stored if bodies is stored.bodies else self._stored(bodies)
            self._afters[stored, request] = then, answer
        return self._afters[stored, request]

    def _number(self, past: int, answer: Answer) -> int:
        """Equal pasts have equal numbers: shorter to compare than what they hold."""
        number = self._numbers.setdefault((past, answer), len(self._pasts))
        if number == len(self._pasts):
            self._pasts.append((past, answer))
        return number

    def _answers(self, past: int) -> tuple[Answer, ...]:
        """What the process was told, last first."""
        answers = []
        while past:
            past, answer = self._pasts[past]
            answers.append(answer)
        return tuple(answers)

    def _request(self, name: str, past: int) -> Request | str:
        """What the process asks next, or how it ended."""
        if (name, past) not in self._next:
            try:
                self._processes[name](_Replay(self._answers(past)))
            except _Waits as waits:
                self._next[name, past] = waits.request
            except StoreError as error:
                self._next[name, past] = type(error).__name__
            else:
                self._next[name, past] = "returned"
        return self._next[name, past]

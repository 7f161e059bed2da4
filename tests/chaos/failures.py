"""T6: one request of an operation goes wrong, each in turn and in each of eight ways.

The faults happen on the wire, in a proxy before a real store: a request that is swallowed and
arrives when everybody has given up, answers 500, 503 and 409, a connection that is reset, an answer
that is lost, cut short, or has one byte of its body flipped.

Each case: the operation ends well, or with a typed error, or with an outcome that `settle` then
tells for good; what it said is what the store holds, also after the swallowed request has arrived;
the same command again succeeds; and when a reaper and a collector have been there nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from adapter_store import fsck
from adapter_store.errors import AlreadyExists, Conflict, OutcomeUnknown, StoreError
from adapter_store.layout import log_key
from adapter_store.locks import RedisLock
from adapter_store.notify import HintStream, RedisAnnouncer
from adapter_store.objects import ObjectStore
from adapter_store.record import Record
from adapter_store.redis_client import open_redis
from adapter_store.s3 import open_s3
from adapter_store.settings import Endpoints
from adapter_store.slot import Slot
from tests.adapter_store.publishing import ADAPTER, TENANT, View, broken_promises, view
from tests.chaos.bench import Bench
from tests.chaos.crashes import Rooted
from tests.chaos.io_points import folder_of, known_points
from tests.chaos.operations import OPERATIONS, Desk, Operation, Request, starting
from tests.chaos.proxy import Fault, HttpRequest, Proxy, proxied
from tests.chaos.row import Row
from tests.chaos.simulation.bugs import timeout_is_failure
from tests.conftest import open_endpoint

LANES = 3
CASES = 360
"""At least, at full scale."""
KINDS = (
    Fault.SWALLOW,
    Fault.ERROR,
    Fault.UNAVAILABLE,
    Fault.RESET,
    Fault.LOSE_ANSWER,
    Fault.CONFLICT,
    Fault.SHORT_BODY,
    Fault.FLIPPED_BYTE,
)
_NUMBERS = count(1)
_METHODS = {"get", "put", "head", "list", "delete"}
_BODILESS = {"head", "delete"}
READ_TIMEOUT_S = 0.5
"""Of the S3 client: how long it waits for an answer that does not come."""


@dataclass(frozen=True, slots=True)
class Case:
    operation: str
    point: str
    """Its first request of this kind goes wrong."""
    fault: Fault

    def __str__(self) -> str:
        return f"{self.operation}, {self.point} {self.fault.value}"


def run(scale: float, seed: int, bench: Bench) -> Row:
    every = list(cases_of(known_points()))
    random.Random(seed).shuffle(every)
    chosen = every[: max(LANES, round(len(every) * min(1.0, scale)))]
    with ExitStack() as opened:
        own, *endpoints = [opened.enter_context(bench.endpoints()) for _ in range(LANES + 1)]
        pool = opened.enter_context(ProcessPoolExecutor(LANES, mp_context=get_context("spawn")))
        controls = pool.submit(controls_caught, own, bench.folder)
        parts = [chosen[place::LANES] for place in range(LANES)]
        played = [
            pool.submit(broken_by, part, one, bench.folder)
            for part, one in zip(parts, endpoints, strict=True)
        ]
        violations: list[str] = []
        endings: Counter[str] = Counter()
        for part in played:
            wrong, ended = part.result()
            violations += wrong
            endings += ended
        caught = controls.result()
    if len(every) < CASES:
        violations.append(f"there are {len(every)} cases, not {CASES}")
    return Row(
        id="T6",
        cases=len(chosen),
        unit="failures",
        violations=violations,
        controls=caught,
        faults=Counter(case.fault.value for case in chosen),
        seeds=str(seed),
        figures={
            "operations": len(OPERATIONS),
            "points": len({(case.operation, case.point) for case in every}),
            **{f"ended {how}": count for how, count in sorted(endings.items())},
        },
    )


def cases_of(points: dict[str, list[str]]) -> Iterator[Case]:
    """Every kind of request that an operation sends to the store, with every fault."""
    for name in OPERATIONS:
        requests = [point for point in points[name] if point.split()[0] in _METHODS]
        for point in dict.fromkeys(requests):
            for fault in KINDS:
                if fault is Fault.FLIPPED_BYTE and point.split()[0] in _BODILESS:
                    continue
                yield Case(name, point, fault)


def broken_by(
    cases: Sequence[Case], endpoints: Endpoints, folder: Path
) -> tuple[list[str], Counter[str]]:
    """What these failures broke, and how the operations ended."""
    wrong: list[str] = []
    endings: Counter[str] = Counter()
    with Lane.opened(endpoints, folder) as lane:
        for case in cases:
            found = lane.play(case)
            wrong += [f"{case}: {text}" for text in found.wrong]
            endings[found.ended] += 1
    return wrong, endings


def controls_caught(endpoints: Endpoints, folder: Path) -> dict[str, bool]:
    """Whether the same cases notice each seeded bug."""
    with Lane.opened(endpoints, folder) as lane:
        return {
            "a commit that landed unheard is called a failure": lane.notices(
                timeout_is_failure(), Case("publish", "put log", Fault.LOSE_ANSWER)
            ),
            "a failure that appears later": lane.notices(
                timeout_is_failure(), Case("publish", "put log", Fault.SWALLOW)
            ),
            "a commit without an answer is called a success": lane.notices(
                _hoping(), Case("publish", "put log", Fault.RESET)
            ),
            "what comes back is believed": lane.notices(
                _believing(), Case("publish", "get log", Fault.FLIPPED_BYTE)
            ),
        }


def _hoping() -> AbstractContextManager[object]:
    def hopeful(self: Slot, record: Record, **rest: object) -> Record:
        with contextlib.suppress(OutcomeUnknown):
            self._store.put_new(log_key(record.tenant, record.adapter, record.gen), record.encode())
        return record

    return mock.patch.object(Slot, "commit", hopeful)


@contextlib.contextmanager
def _believing() -> Iterator[None]:
    """And the byte is one that nothing else in a record vouches for."""

    def flip_the_actor(body: bytes) -> bytes:
        before, found, after = body.partition(b'"actor":"t')
        return before + found[:-1] + b"u" + after if found else body

    with (
        mock.patch.dict("adapter_store.s3._CHECKED", clear=True),
        mock.patch("tests.chaos.proxy._flipped", flip_the_actor),
    ):
        yield


@dataclass(frozen=True, slots=True)
class Played:
    wrong: Sequence[str]
    ended: str


class Trap:
    """The plan of the proxy: the first request of a kind goes wrong, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._case: Case | None = None
        self.sprung = False

    def set(self, case: Case) -> None:
        with self._lock:
            self._case, self.sprung = case, False

    def lift(self) -> None:
        with self._lock:
            self._case = None

    def __call__(self, request: HttpRequest) -> Fault | None:
        with self._lock:
            if self._case is None or self.sprung or named(request) != self._case.point:
                return None
            self.sprung = True
            return self._case.fault


class Lane:
    """Where cases are played one after another: a part of a bucket each, a Redis database."""

    def __init__(self, endpoints: Endpoints, behind: Endpoints, proxy: Proxy, trap: Trap) -> None:
        self._store = open_endpoint(endpoints)
        self._proxy = proxy
        self._trap = trap
        self._faulty = open_s3(
            endpoint=behind.s3_endpoint,
            bucket=behind.s3_bucket,
            region=behind.s3_region,
            access_key=behind.s3_access_key,
            secret_key=behind.s3_secret_key,
            read_timeout_s=READ_TIMEOUT_S,
        )
        self._redis = open_redis(endpoints.redis_url)
        self._folder = Path()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, endpoints: Endpoints, folder: Path) -> Iterator[Lane]:
        trap = Trap()
        with proxied(endpoints, trap) as (proxy, behind):
            lane = cls(endpoints, behind, proxy, trap)
            lane._folder = folder
            yield lane

    def notices(self, bug: AbstractContextManager[object], case: Case) -> bool:
        sound = self.play(case)
        assert not sound.wrong, f"{case} is broken without the bug: {sound.wrong}"
        with bug:
            return bool(self.play(case).wrong)

    def play(self, case: Case) -> Played:
        """One operation with its fault, and all that has to be so afterwards."""
        operation = OPERATIONS[case.operation]
        objects, late = starting(operation)
        root = f"failure-{os.getpid()}-{next(_NUMBERS)}"
        store = Rooted(self._store, root)
        for key, body in objects.items():
            store.put_new(key, body)
        self._redis.flushdb()
        self._trap.set(case)
        faulty = self._desk(Rooted(self._faulty, root), store, root)
        ended, wrong = _act(operation, faulty)
        self._trap.lift()
        if not self._trap.sprung:
            wrong.append("no such request was sent")
        untouched = [operation.before, *operation.on_the_way]
        landed = ended == "well"
        if ended == "unknown":
            landed = self._settled(faulty, store, root)
        wrong += _unlike(store, [operation.after] if landed else untouched, f"it ended {ended} and")
        self._proxy.deliver()
        wrong += _unlike(
            store, [operation.after] if landed else untouched, "after the swallowed request arrived"
        )
        called_off = faulty.txids[-1:] if operation.commits and not landed else []
        if landed or operation.before != View():
            wrong += broken_promises(store, failed_txids=called_off)
        if not wrong:
            wrong += self._again(operation, store, root, late)
        return Played(wrong, ended)

    def _settled(self, faulty: Desk, store: ObjectStore, root: str) -> bool:
        """Whether the transaction whose outcome was unknown landed; afterwards it never will."""
        try:
            self._desk(store, store, root).publisher().settle(TENANT, ADAPTER, faulty.txids[-1])
        except Conflict:
            return False
        return True

    def _again(
        self, operation: Operation, store: ObjectStore, root: str, late: Sequence[Request]
    ) -> list[str]:
        """The same command once more, then everything is cleared up."""
        again, wrong = _act(operation, self._desk(store, store, root))
        if again != "well":
            return [*wrong, f"run again it ended {again}"]
        wrong += _unlike(store, [operation.after], "run again")
        collector = self._desk(store, store, root).collector()
        collector.reap(TENANT, older_s=0.0)
        collector.collect(TENANT)
        for key, body in late:
            with contextlib.suppress(AlreadyExists):
                store.put_new(key, body)
        wrong += _unlike(store, [operation.after], "when all was cleared up")
        for finding in fsck.Examination(store, TENANT, parallel=1):
            wrong.append(f"fsck finds {finding.kind.value}: {finding.message}")
        return wrong + broken_promises(store)

    def _desk(self, store: ObjectStore, rival: ObjectStore, root: str) -> Desk:
        return Desk(
            store=store,
            rival=rival,
            lock=RedisLock(self._redis, wait_s=20.0),
            announcer=RedisAnnouncer(self._redis),
            hints=HintStream(self._redis),
            folder=self._folder / root,
        )


def named(request: HttpRequest) -> str:
    """A request as io_points.json names it."""
    url = urlsplit(request.target)
    asked = parse_qs(url.query)
    path = asked["prefix"][0] if "prefix" in asked else unquote(url.path).split("/", 2)[2]
    verb = "list" if "prefix" in asked else request.method.lower()
    return f"{verb} {folder_of(path.partition('/')[2])}"


def _act(operation: Operation, desk: Desk) -> tuple[str, list[str]]:
    """How an operation ended: well, failed, unknown; anything else is wrong."""
    try:
        operation.act(desk)
    except OutcomeUnknown:
        return "unknown", []
    except StoreError:
        return "failed", []
    except Exception as error:
        return "badly", [f"it raised {type(error).__name__}: {error}"]
    return "well", []


def _unlike(store: ObjectStore, allowed: Sequence[View], when: str) -> list[str]:
    try:
        found = view(store)
    except StoreError as error:
        return [f"{when} what is current is not whole: {error}"]
    return [] if found in allowed else [f"{when} it is {found}, not {allowed[0]}"]

"""T4: what publishers and readers in processes of their own see of one log is linearizable.

Four publishers and four readers, real processes, reach the store through a proxy that delays,
loses requests and answers, and now and then cuts one adapter off right after a commit was sent.
Twelve adapters are played at once, 40 operations each. The control is the same through a proxy
that strips `If-None-Match`: nearly every history must be found out.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO

from adapter_store.settings import Endpoints
from tests.chaos.bench import ROOT, Bench, child_environment
from tests.chaos.linearizability import Answer, Operation, is_linearizable
from tests.chaos.log_client import PUBLISHER, READER, Task, operation
from tests.chaos.proxy import Fault, HttpRequest, proxied, strip_conditions
from tests.chaos.row import Row

HISTORIES, CONTROLS = 300, 40
LANES, LEAST = 12, 6
PUBLISHERS, READERS = 4, 4
CAUGHT_SHARE = 0.95
WHOLE = 0.1
"""Below this scale clients share two processes and there are no outages."""
LOCKED_EVERY = 4
"""Every so manieth history takes the Redis lock; the others leave it all to the log slot."""
_CUT_S = 6.5
"""Longer than a publisher tries, so that some never learn what became of their commit."""
_SLOWEST_HISTORY_S = 120.0


class Weather:
    """The proxy's plan: a few faults at random, and outages of one adapter."""

    def __init__(self, seed: int, *, outages: bool) -> None:
        self._rng = random.Random(seed)
        self._outages = outages
        self._cut_until: dict[str, float] = {}

    def __call__(self, request: HttpRequest) -> Fault | None:
        log, found, _ = request.target.partition("/log/")
        if found and self._cut_until.get(log.partition("?")[0], 0.0) > time.monotonic():
            return Fault.CUT_OFF
        drawn = self._rng.random()
        if request.is_commit and drawn < 0.04:
            if self._outages and drawn < 0.015:
                self._cut_until[log] = time.monotonic() + _CUT_S
            return Fault.LOSE_ANSWER if self._rng.random() < 0.5 else Fault.LOSE_REQUEST
        drawn = self._rng.random()
        for fault, until in (
            (Fault.DELAY, 0.03),
            (Fault.LOSE_ANSWER, 0.035),
            (Fault.LOSE_REQUEST, 0.04),
            (Fault.UNAVAILABLE, 0.045),
        ):
            if drawn < until:
                return fault
        return None


@dataclass(frozen=True, slots=True)
class Flagged:
    """How many histories were found out, and how many of them without the hash chain's help."""

    at_all: int
    by_order: int

    @classmethod
    def among(cls, histories: Sequence[Sequence[Operation]]) -> Flagged:
        ordered = [[one for one in h if one.answer is not Answer.DAMAGED] for h in histories]
        return cls(
            at_all=sum(not is_linearizable(history) for history in histories),
            by_order=sum(not is_linearizable(history) for history in ordered),
        )


def run(scale: float, seed: int, bench: Bench) -> Row:
    whole = scale >= WHOLE
    histories = max(LEAST, round(HISTORIES * scale))
    control_histories = max(LEAST, round(CONTROLS * scale))
    with bench.endpoints() as endpoints, company(endpoints, whole=whole) as clients:
        with proxied(endpoints, Weather(seed, outages=whole)) as (proxy, through):
            played = play(clients, through, histories, name=f"h{seed}")
            faults = dict(proxy.faults)
        with proxied(endpoints, strip_conditions) as (_, through):
            careless = play(clients, through, control_histories, name=f"c{seed}", locks=False)
    flagged = Flagged.among(careless)
    answers = Counter(one.answer.value for history in played for one in history)
    times = []
    violations = []
    for number, history in enumerate(played):
        started = time.perf_counter()
        if not is_linearizable(history):
            violations.append(f"history {number}: {_told(history)}")
        times.append(time.perf_counter() - started)
    return Row(
        id="T4",
        cases=len(played),
        unit="histories",
        violations=violations,
        controls={
            "a store that ignores If-None-Match": flagged.at_all >= CAUGHT_SHARE * control_histories
        },
        faults=faults,
        seeds=str(seed),
        figures={
            "operations": sum(answers.values()),
            **{f"answers_{name}": count for name, count in sorted(answers.items())},
            "control_histories": control_histories,
            "control_histories_flagged": flagged.at_all,
            "control_histories_flagged_by_order_alone": flagged.by_order,
            "check_ms_mean": round(1000 * sum(times) / len(times), 2),
        },
        notes=f"{PUBLISHERS} publisher and {READERS} reader processes, {LANES} adapters at once",
    )


def play(
    clients: Company, endpoints: Endpoints, histories: int, *, name: str, locks: bool = True
) -> list[list[Operation]]:
    """Every client's operations, by history. Raises RuntimeError when a client fails."""
    tasks = iter(
        Task(
            history=number,
            adapter=f"{name}-{number}",
            locked=locks and number % LOCKED_EVERY == LOCKED_EVERY - 1,
            s3_endpoint=endpoints.s3_endpoint,
        )
        for number in range(histories)
    )
    found: list[list[Operation]] = [[] for _ in range(histories)]
    left = dict.fromkeys(range(histories), PUBLISHERS + READERS)
    for _ in range(LANES):
        clients.start(next(tasks, None))
    while left:
        number, operations = clients.answer()
        found[number] += operations
        left[number] -= 1
        if not left[number]:
            del left[number]
            clients.start(next(tasks, None))
    return found


class Company:
    """The client processes, and what they say."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes
        self._said: queue.Queue[str] = queue.Queue()
        self._listeners = [
            threading.Thread(target=self._listen, args=(process,), daemon=True)
            for process in processes
        ]
        for listener in self._listeners:
            listener.start()

    def start(self, task: Task | None) -> None:
        """Tell every client at once; nothing for None."""
        if task is not None:
            for process in self._processes:
                pipe(process.stdin).write(json.dumps(asdict(task)) + "\n")
                pipe(process.stdin).flush()

    def answer(self) -> tuple[int, list[Operation]]:
        """The next client's part of a history: its number, its operations."""
        said = json.loads(self._said.get(timeout=_SLOWEST_HISTORY_S))
        if "error" in said:
            raise RuntimeError(f"a client failed in history {said['history']}: {said['error']}")
        return said["history"], [operation(value) for value in said["operations"]]

    def end(self) -> None:
        """Kill them all."""
        for process in self._processes:
            process.kill()
            process.wait()
        for listener in self._listeners:
            listener.join()
        for process in self._processes:
            pipe(process.stdin).close()
            pipe(process.stdout).close()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        for line in pipe(process.stdout):
            self._said.put(line)


@contextlib.contextmanager
def company(endpoints: Endpoints, *, whole: bool) -> Iterator[Company]:
    """Each client in a process of its own, or for a short run all of a kind in one."""
    publishers = [f"{PUBLISHER}{n}" for n in range(PUBLISHERS)]
    readers = [f"{READER}{n}" for n in range(READERS)]
    groups = [[name] for name in (*publishers, *readers)] if whole else [publishers, readers]
    clients = Company([_client(endpoints, names) for names in groups])
    try:
        yield clients
    finally:
        clients.end()


def _client(endpoints: Endpoints, names: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.log_client", *names],
        cwd=ROOT,
        env=child_environment(endpoints),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _told(history: Sequence[Operation]) -> str:
    start = min(one.invoked for one in history)
    return "; ".join(
        f"{one.client} {one.answer.value} expected {one.expected} gen {one.gen} {one.vdig[:6]} "
        f"[{one.invoked - start:.3f}, {one.returned - start:.3f}]"
        for one in sorted(history, key=lambda one: one.invoked)
    )

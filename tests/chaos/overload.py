"""T16: a node under every kind of too much at once, and how its well-behaved tenant fares.

A victim asks for an adapter that it uses all the time, one request after the other, by turns in
quiet, beside one of the troubles below after the other, and beside all of them at once. The node is
real but for its tiny base and has quotas in force; node and troublemakers are processes of their
own. The victim's time to first token may grow by half beside any of them, none of its requests may
fail, and the node may neither fetch more at once than it was told to, nor load more for the flood
than its quota, nor keep what its callers leave behind.

cold      requests for adapters that nobody has asked for, 50 a second, over all that are published
oversize  messages, prompts and headers over their limits
timeless  streams without a deadline, whose callers go away
idle      1,000 connections that say nothing
slow      callers that ask for wordy answers and read none of them

At the end the node is told to leave (SIGTERM) with streams running: it has to say NOT_SERVING, give
load balancers their time, refuse who comes then, finish what runs, and exit with 0.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.cpu.figures import percentile
from benchmarks.cpu.wire import Worker
from inference_node.client import Client, Stopping
from inference_node.client.access import NOBODY
from inference_node.client.link import open_channel
from inference_node.errors import NodeError
from tests.adapter_store.waiting import wait_until
from tests.chaos.bench import Bench
from tests.chaos.overloaded_node import (
    BUGS,
    COLD_LOADS,
    DRAIN_DELAY,
    FETCH_THREADS,
    HOT,
    VICTIM,
)
from tests.chaos.row import Row
from tests.chaos.troublemakers import LONG

KINDS = ("cold", "oversize", "timeless", "idle", "slow")
TOGETHER = "together"
NAMES, FEWEST_NAMES = 10_000, 200
SECONDS, SHORTEST = 40.0, 3.0
"""Of trouble, at scale 1 and at least."""
SLOWER, FAR_SLOWER = 1.5, 3.0
"""How many times as long the victim may wait; and in a few seconds, of which others on the machine
may take some."""
GROWTH = 1.05
"""Of memory, from the first trouble's end to the last one's."""
ATTEMPTS = 3
"""A machine that others use is slow by chance: the victim was slowed when every attempt says so."""
TURN = 2.0
"""Seconds in trouble, until the next one's turn."""
HEAD_START = 0.2
"""Seconds from the beginning of trouble to the victim's first request."""
DECODED_S = 20.0
"""In which what slow readers asked for has been decoded, and is only held."""
STREAMS = 4
PROMPT = "Tell me about the sea. " * 50
_numbers = itertools.count()
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(slots=True)
class Site:
    """A node, and who troubles it."""

    node: Worker
    troublemakers: Worker
    port: int

    def look(self) -> dict[str, float]:
        found: dict[str, float] = self.node.ask("look")
        self.node.process.wake()
        return found

    def begin(self, bug: str) -> None:
        self.node.ask("begin", bug=bug)
        self.node.process.wake()

    def trouble(self, kinds: Sequence[str]) -> None:
        self.troublemakers.ask("start", kinds=list(kinds))
        self.troublemakers.process.wake()

    def peace(self) -> dict[str, int]:
        said: dict[str, int] = self.troublemakers.ask("stop")
        self.troublemakers.process.wake()
        return said


@contextmanager
def site(folder: Path, names: int, seed: int) -> Iterator[Site]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        argv = [sys.executable, "-m", "tests.chaos.overloaded_node", str(folder), str(names)]
        node = Worker(argv, log=folder / "node.log")
        stack.callback(node.close)
        node.process.wake()
        port = node.facts["port"]
        argv = [sys.executable, "-m", "tests.chaos.troublemakers", str(port), str(names), str(seed)]
        troublemakers = Worker(argv, log=folder / "troublemakers.log")
        stack.callback(troublemakers.close)
        troublemakers.process.wake()
        yield Site(node, troublemakers, port)


@dataclass(slots=True)
class Victim:
    """What became of its requests."""

    seconds: list[float]
    errors: list[str]

    def ask(self, client: Client, seconds: float) -> None:
        """One request after the other for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            try:
                with client.stream(
                    # Begins as none before: no cache helps.
                    f"{next(_numbers)}: {PROMPT}",
                    adapter=HOT,
                    tenant=VICTIM,
                    stopping=Stopping(max_new_tokens=2, ignore_eos=True),
                    timeout=10.0,
                ) as stream:
                    assert stream.served.digest
                    next(iter(stream))
                    self.seconds.append(time.perf_counter() - began)
                    assert stream.result
            except NodeError as error:
                self.errors.append(f"{error.reason}: {error}")

    @property
    def p95(self) -> float:
        return percentile(self.seconds, 0.95)


@dataclass(frozen=True, slots=True)
class Fared:
    """A victim in quiet and in trouble, by turns; and what it cost the node."""

    quiet: Victim
    troubled: Mapping[str, Victim]
    """By the kind of trouble."""
    said: Mapping[str, int]
    before: Mapping[str, float]
    after: Mapping[str, float]
    minutes: float

    @property
    def slower(self) -> dict[str, float]:
        """How many times as long it waits, by the kind of trouble."""
        return {kind: victim.p95 / self.quiet.p95 for kind, victim in self.troubled.items()}

    def violations(self) -> Iterator[str]:
        """All but how much slower it was, which chance has a part in."""
        for kind, victim in self.troubled.items():
            yield from (f"{kind}: the victim was told {text}" for text in victim.errors[:3])
        if self.after["most_fetches"] > FETCH_THREADS:
            yield f"{self.after['most_fetches']:.0f} fetches at once, {FETCH_THREADS} allowed"
        # Two chunks make a version: its weights and its config.
        loads = self.after["fetches"] / 2
        allowed = COLD_LOADS * (1 + self.minutes) + 1
        if loads > allowed:
            yield f"{loads:.0f} versions loaded for the flood, {allowed:.0f} allowed"
        if self.after["rss_mib"] > self.before["rss_mib"] * GROWTH:
            yield f"memory from {self.before['rss_mib']:.0f} to {self.after['rss_mib']:.0f} MiB"
        silent = self.said.get("refused without saying when to come back", 0)
        if silent:
            yield f"{silent} refusals did not say when to come back"


def fare(
    place: Site,
    seconds: float,
    kinds: Sequence[str] = (*KINDS, TOGETHER),
    *,
    turn: float = TURN,
    bug: str = "",
) -> Fared:
    """Each kind of trouble in turn, with quiet between; so often that it takes `seconds`."""
    place.begin("")
    quiet, troubled = Victim([], []), {kind: Victim([], []) for kind in kinds}
    said: Counter[str] = Counter()
    with Client(f"127.0.0.1:{place.port}") as client:
        Victim([], []).ask(client, 0.2 if bug else 1.0)
        # What the worst of it takes of memory once is there before.
        _round(place, client, 0.2, Victim([], []), {kinds[-1]: Victim([], [])})
        # Again, or the flood's loads are spent before a bug in them can slow anyone.
        place.begin(bug)
        began = time.monotonic()
        before = place.look()
        for _ in range(max(1, round(seconds / (turn * len(kinds))))):
            said.update(_round(place, client, turn, quiet, troubled))
    after = place.look()
    return Fared(quiet, troubled, said, before, after, (time.monotonic() - began) / 60)


def _round(
    place: Site, client: Client, seconds: float, quiet: Victim, troubled: Mapping[str, Victim]
) -> Counter[str]:
    """What the node said to the troublemakers."""
    said: Counter[str] = Counter()
    for kind, victim in troubled.items():
        quiet.ask(client, seconds / 2)
        _begin(place, client, KINDS if kind == TOGETHER else [kind])
        victim.ask(client, seconds)
        said.update(place.peace())
    return said


def _begin(place: Site, client: Client, kinds: Sequence[str]) -> None:
    """Slow readers first, and the others when what these asked for has been decoded: until then
    they are a tenant like others, and who shares a step with eight rows waits for it."""
    if "slow" in kinds:
        before = client.model_info().generated_tokens
        place.trouble(["slow"])

        def decoded() -> bool:
            info = client.model_info()
            more = info.generated_tokens - before
            return more >= LONG.max_new_tokens and not info.running and not info.waiting

        wait_until(decoded, within_s=DECODED_S)
    place.trouble([kind for kind in kinds if kind != "slow"])
    time.sleep(HEAD_START)


@dataclass(frozen=True, slots=True)
class Left:
    """How a node left."""

    not_serving_s: float
    notice_s: float
    """From NOT_SERVING to the first call that was refused."""
    finished: int
    seconds: float
    code: int


def leave(place: Site) -> Left:
    """SIGTERM with streams running, seen as load balancers and callers see it."""
    address = f"127.0.0.1:{place.port}"
    process = place.node.process.popen
    with Client(address) as client, open_channel(address, NOBODY) as channel:
        long = Stopping(max_new_tokens=300, ignore_eos=True)
        streams = [client.stream("hi", tenant=VICTIM, stopping=long) for _ in range(STREAMS)]
        for stream in streams:
            next(iter(stream))
        finished: list[int] = []
        readers = [
            threading.Thread(target=lambda s=stream: finished.append(len(s.result.token_ids)))
            for stream in streams
        ]
        for reader in readers:
            reader.start()
        asked = health_pb2.HealthCheckRequest(service="readiness")
        watch = health_pb2_grpc.HealthStub(channel).Watch(asked)
        next(watch)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        while next(watch).status != NOT_SERVING:
            pass
        told = time.monotonic()
        refused = _first_refusal(address, told + 30)
        for reader in readers:
            reader.join(30)
        code = process.wait(60)
    whole = sum(count == long.max_new_tokens for count in finished)
    return Left(told - began, refused - told, whole, time.monotonic() - began, code)


def _first_refusal(address: str, until: float) -> float:
    """When a new caller is first turned away."""
    with open_channel(address, NOBODY) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < until:
            try:
                health.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=2)
            except Exception:
                return time.monotonic()
            time.sleep(0.02)
    return until


def run(scale: float, seed: int, bench: Bench) -> Row:
    """At scale 1, 40 s of trouble over 10,000 adapters, for each attempt at the victim's times."""
    bound = SLOWER if scale >= 0.1 else FAR_SLOWER
    names, seconds = max(FEWEST_NAMES, round(NAMES * scale)), max(SHORTEST, SECONDS * scale)
    turn = min(TURN, seconds / (len(KINDS) + 1))
    with site(bench.folder / "node", names, seed) as place:
        attempts = [fare(place, seconds, turn=turn)]
        while _slowed(attempts, bound) and len(attempts) < ATTEMPTS:
            attempts.append(fare(place, seconds, turn=turn))
        controls = {bug: _caught(place, bug) for bug in BUGS}
        place.begin("")
        left = leave(place)
    violations = [text for fared in attempts for text in fared.violations()]
    violations += [
        f"seed {seed}: beside {kind} the victim waits {times:.2f} times as long, every time"
        for kind, times in _slowed(attempts, bound).items()
    ]
    violations += _leaving(left)
    said: Counter[str] = Counter()
    for fared in attempts:
        said.update(fared.said)
    return Row(
        id="T16",
        cases=sum(len(v.seconds) for fared in attempts for v in fared.troubled.values()),
        unit="requests of the victim",
        violations=violations,
        controls=controls,
        faults=said,
        seeds=str(seed),
        figures=_figures(attempts, left, names),
    )


def _slowed(attempts: Sequence[Fared], bound: float) -> dict[str, float]:
    """The kinds of trouble that slowed the victim too much in every attempt, and how much."""
    least = {kind: min(fared.slower[kind] for fared in attempts) for kind in attempts[0].slower}
    return {kind: times for kind, times in least.items() if times > bound}


def _leaving(left: Left) -> Iterator[str]:
    if left.code != 0:
        yield f"it left with {left.code}"
    if left.finished != STREAMS:
        yield f"{left.finished} of {STREAMS} streams were finished when it left"
    if left.notice_s < 0.9 * DRAIN_DELAY:
        yield f"it refused calls {left.notice_s:.2f} s after NOT_SERVING, {DRAIN_DELAY} promised"


def _caught(place: Site, bug: str) -> bool:
    """Whether the row notices a bug, in a second."""
    fared = fare(place, 1.0, ("cold",), turn=1.0, bug=bug)
    return bool(list(fared.violations())) or max(fared.slower.values()) > FAR_SLOWER


def _figures(attempts: Sequence[Fared], left: Left, names: int) -> dict[str, float]:
    last = attempts[-1]
    return {
        "names": names,
        "attempts": len(attempts),
        "quiet_ttft_p95_ms": round(1e3 * last.quiet.p95, 2),
        **{
            f"slower_{kind}": round(min(fared.slower[kind] for fared in attempts), 3)
            for kind in last.slower
        },
        "most_fetches_at_once": last.after["most_fetches"],
        "rss_mib_before": round(attempts[0].before["rss_mib"], 1),
        "rss_mib_after": round(last.after["rss_mib"], 1),
        "drain_not_serving_ms": round(1e3 * left.not_serving_s, 1),
        "drain_notice_s": round(left.notice_s, 3),
        "drain_streams_finished": left.finished,
        "drain_s": round(left.seconds, 2),
        "drain_exit_code": left.code,
    }

"""A node as a process: the real engine, watcher, loader and pool on a tiny checkpoint, no gRPC.

    python -m tests.chaos.node <checkpoint> [--bug stale-memo|deaf]

takes one command a line from stdin and answers each with one line, in any order:

    {"id": 1, "until": "name", "gen": 7}             when a request was first served generation 7
    {"id": 2, "ask": "name", "min_generation": 7}    which generation a request was served
    {"id": 3, "count": true}                         how many requests were answered so far

A command with `until` asks for the name again and again; besides, the node is asked for some name
it was ever asked for, all the time. Each answer is an observation, and one whose generation is
below what an earlier answer had told before the request was sent is a regression.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapter_store.layout import DEFAULT_TENANT
from adapter_store.notify import HintStream
from adapter_store.reader import Reader
from adapter_store.settings import load_settings
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry
from inference_node.config import EngineConfig
from inference_node.engine.build import build_engine
from inference_node.engine.loop import EngineLoop
from inference_node.request import Completed, Event, Failed, Request, Sampling, Stopping

STALE_MEMO, DEAF = "stale-memo", "deaf"
TICK_S = 0.02
"""How often it is asked: what a measured delay may be too long by."""
IDLE_ASKS = 2
"""Names asked for at every tick, apart from those that somebody waits for."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A command waiting for its generation."""

    id: int
    name: str
    gen: int


class Asker:
    """Asks the engine, and remembers what was answered. Safe for several threads."""

    def __init__(self, engine: EngineLoop, seed: int) -> None:
        self._engine = engine
        self._rng = random.Random(seed)
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._awaited: list[Awaited] = []
        self._in_flight: set[str] = set()
        self._answered = 0
        self._regressions: list[str] = []

    def run(self) -> None:
        """Ask at every tick, for ever."""
        while True:
            time.sleep(TICK_S)
            with self._lock:
                known = sorted(self._seen)
                idle = self._rng.sample(known, min(IDLE_ASKS, len(known)))
                wanted = {*idle, *(one.name for one in self._awaited)} - self._in_flight
                self._in_flight |= wanted
            for name in wanted:
                self._ask(name)

    def obey(self, command: Mapping[str, Any]) -> None:
        if "until" in command:
            with self._lock:
                self._awaited.append(Awaited(command["id"], command["until"], command["gen"]))
        elif "ask" in command:
            self._ask(command["ask"], command["min_generation"], answer_to=command["id"])
        else:
            with self._lock:
                counted = {"answered": self._answered, "regressions": self._regressions[:5]}
            _say(command["id"], **counted)

    def _ask(self, name: str, min_generation: int = 0, answer_to: int | None = None) -> None:
        with self._lock:
            floor = self._seen[name]
        request = Request(
            request_id=f"r{next(self._ids)}",
            tenant=DEFAULT_TENANT,
            adapter=name,
            prompt=(5, 6, 7),
            sampling=Sampling(),
            stopping=Stopping(max_new_tokens=1, ignore_eos=True),
            min_generation=min_generation,
        )

        def on_event(event: Event) -> None:
            if isinstance(event, Completed):
                self._note(name, floor, event.served.generation)
                if answer_to is not None:
                    _say(answer_to, gen=event.served.generation)
            elif isinstance(event, Failed):
                with self._lock:
                    self._in_flight.discard(name)
                if answer_to is not None:
                    _say(answer_to, error=type(event.error).__name__)

        self._engine.submit(request, on_event)

    def _note(self, name: str, floor: int, gen: int) -> None:
        now = time.monotonic()
        with self._lock:
            self._in_flight.discard(name)
            self._answered += 1
            if gen < floor:
                self._regressions.append(f"{name} served generation {gen} after {floor}")
            self._seen[name] = max(self._seen[name], gen)
            reached = [one for one in self._awaited if one.name == name and one.gen <= gen]
            self._awaited = [one for one in self._awaited if one not in reached]
        for one in reached:
            _say(one.id, at=now, gen=gen)


class DeafHints:
    """The bug of a node that takes a Redis it cannot reach for one without news."""

    def __init__(self, hints: HintStream) -> None:
        self._hints = hints
        self.gaps = 0
        self.healthy = True

    def poll(self, timeout_s: float, /) -> list[Any]:
        return self._hints.poll(timeout_s)


def forget_to_invalidate() -> None:
    """The bug of a routing memo keyed by name: one look in two finds what was there at first."""
    looks = random.Random(0)
    memo: dict[str, Entry] = {}
    serving = SlotTable.serving

    def remembered(self: SlotTable, tenant: str, adapter: str) -> Entry | None:
        entry = serving(self, tenant, adapter)
        if entry is None:
            return None
        first = memo.setdefault(adapter, entry)
        return first if looks.random() < 0.5 and self.resident(first.key) else entry

    SlotTable.serving = remembered  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--bug", choices=(STALE_MEMO, DEAF))
    arguments = parser.parse_args()
    settings = load_settings()
    config = EngineConfig(
        base_model=arguments.checkpoint,
        device="cpu",
        linears="dense",
        dtype="float32",
        pool_bytes=16 * 2**20,
        kv_tokens=4096,
        max_context=64,
    )
    if arguments.bug == STALE_MEMO:
        forget_to_invalidate()
    hints = settings.open_hints()
    deaf = arguments.bug == DEAF and hints is not None
    engine = build_engine(
        config,
        reader=Reader(settings.open_store()),
        hints=DeafHints(hints) if deaf and hints is not None else hints,
    )
    engine.start()
    asker = Asker(engine, os.getpid())
    threading.Thread(target=asker.run, daemon=True).start()
    _say(0, ready=True)
    for line in sys.stdin:
        asker.obey(json.loads(line))
    # What is left ends with the process: nobody reads its answers any more.
    os._exit(0)


_speaking = threading.Lock()


def _say(answer_to: int, **what: Any) -> None:
    with _speaking:
        print(json.dumps({"id": answer_to, **what}), flush=True)


if __name__ == "__main__":
    main()

"""Inference nodes: the product's own reader, loader, watcher, admission and slot table.

Only what needs tensors is replaced: a page holds the digest of the version it was written for, so
a request that reads its pages can tell whose they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch

from adapter_store.errors import InvalidAdapter
from adapter_store.reader import Reader
from adapter_store.tensor_file import WEIGHTS_FILE
from inference_node.adapters import loader as loader_module
from inference_node.adapters.loader import Loader
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.reports import Learned, LoaderEvent
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Resident
from inference_node.adapters.watcher import Watcher
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.admission import Admission
from inference_node.engine.sequence import Sequence
from inference_node.errors import AdapterCorrupt, AdapterIncompatible, EngineFailure, NodeError
from inference_node.request import Request
from tests.chaos.simulation.baton import Process
from tests.chaos.simulation.connection import Connection
from tests.chaos.simulation.contents import (
    ADAPTERS,
    BASE,
    CARD,
    SPEC,
    TENANT,
    UNKNOWN,
    weights_by_vdig,
)
from tests.chaos.simulation.coordination import Redis, SimulatedHints
from tests.chaos.simulation.faults import Fault
from tests.chaos.simulation.world import World

PAGES = (2, 2)
POOL = (5, 5)
GROUPS = tuple(SimpleNamespace(name=f"group {number}") for number in range(len(POOL)))
REQUESTS = 4


@dataclass(frozen=True, slots=True)
class Tattoo:
    """Stands for a version laid out on the host: its pages say whose they are."""

    vdig: str
    pages: tuple[int, ...] = PAGES
    scale: float = 1.0
    bytes: int = 1


class TattooPool:
    """Stands for the device memory; copying takes its time, page by page."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.allocator = PageAllocator(POOL)
        self.pages: dict[tuple[int, int], str] = {}

    def claim(self, staged: Resident) -> None:
        for place in _places(staged):
            self.pages[place] = "being written"

    def write(self, staged: Resident, host: HostAdapter) -> None:
        for place in _places(staged):
            self._world.pause()
            self.pages[place] = cast(Tattoo, host).vdig

    def holds(self, held: Resident) -> bool:
        """Whether every page is this version's."""
        return all(self.pages.get(place) == held.key.vdig for place in _places(held))


def _told(event: LoaderEvent) -> str:
    entry = getattr(getattr(event, "target", None), "entry", None)
    key = entry.key if entry else getattr(event, "key", None) or getattr(event, "staged", None)
    about = f"{entry.adapter}@{entry.gen} " if entry else ""
    return f"{type(event).__name__} {about}{getattr(getattr(key, 'key', key), 'vdig', '')[:8]}"


def _places(held: Resident) -> Iterator[tuple[int, int]]:
    for group, pages in enumerate(held.pages):
        for page in pages:
            yield group, page


class TaskExecutor(Executor):
    """Runs each job as a task of its process."""

    def __init__(self, world: World, process: Process, name: str) -> None:
        self._world = world
        self._process = process
        self._name = name

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        name = f"{self._process.name}/{self._name}"
        job: Future[Any] = Future()

        def run() -> None:
            if job.set_running_or_notify_cancel():
                job.set_result(fn(*args, **kwargs))

        self._world.baton.spawn(self._process, name, run)
        return job


class Node:
    """One life of one node: a restart is a new Node."""

    def __init__(self, world: World, redis: Redis) -> None:
        self.world = world
        self.process = world.process("node")
        self.hints = SimulatedHints(redis)
        redis.inboxes.append(self.hints)
        self.inbox: list[LoaderEvent] = []
        self.reader = Reader(Connection(world, self.process), parallel=1)
        self.pool = TattooPool(world)
        self.slots = SlotTable(self.pool.allocator)
        self.loader = Loader(
            self.reader,
            modules=cast(Any, SimpleNamespace(modules=lambda: CARD, groups=GROUPS)),
            pool=cast(AdapterPool, self.pool),
            base_fingerprint=BASE,
            dtype=torch.float32,
            host_bytes=2,
            max_rank=SPEC.rank,
            threads=2,
            post=self.inbox.append,
            executor=lambda threads, name: TaskExecutor(world, self.process, name),
        )
        clock = world.clock(self.process)
        self.watcher = Watcher(
            self.loader,
            self.hints,
            poll_seconds=30.0,
            poll_seconds_without_hints=5.0,
            clock=clock,
        )
        self.admission = Admission(
            self.slots,
            cast(AdapterPool, self.pool),
            self.loader,
            self.watcher,
            ready=self._on_ready,
            fail=self._on_fail,
            clock=clock,
            max_staleness=world.random.choice((0.0, 5.0, 600.0)),
            random=world.random.random,
        )
        self._watching = False
        self._accepted = 0
        self.waiting: list[Sequence] = []
        self.running: dict[Sequence, Entry] = {}
        self._known: dict[str, int] = {}
        self._served: dict[str, int] = {}

    def act(self) -> None:
        """One thing an engine does between two steps, or a turn of the watcher."""
        self.admission.tick()
        roll = self.world.random.random()
        if self.inbox and roll < 0.6:
            event = self.inbox.pop(0)
            if self.world.trace is not None:
                self.world.note(f"{self.process.name} learns {_told(event)}")
            if isinstance(event, Learned) and event.target is None:
                before = self._served.get(event.adapter, 0)
                self._served[event.adapter] = max(before, event.gen)
            self.admission.on_event(event)
        elif roll < 0.75 and len(self.waiting) + len(self.running) < REQUESTS:
            self._accept()
        elif roll < 0.9 and self.running:
            self._finish(self.world.random.choice(list(self.running)))
        elif roll < 0.92 and self.waiting:
            self._cancel(self.world.random.choice(self.waiting))
        elif not self._watching:
            self._watching = True
            self.world.baton.spawn(self.process, f"{self.process.name}/watch", self._watch)

    def check(self) -> None:
        """I7 and the node's own invariants."""
        report = self.world.violated
        name = self.process.name
        for adapter in ADAPTERS:
            known = self.reader.known_gen(TENANT, adapter)
            if known < self._known.get(adapter, 0):
                report(
                    f"I7 {name} knew generation {self._known[adapter]} of {adapter}, now {known}"
                )
            self._known[adapter] = known
            entry = self.slots.serving(TENANT, adapter)
            if entry is not None:
                self._check_service(entry)
        try:
            self.slots.check_integrity()
        except AssertionError as error:
            report(f"N8 {name}: {error}")
        for sequence, entry in self.running.items():
            lease = sequence.lease
            if sequence.entry is not entry or lease is None or lease.key != entry.key:
                report(f"N3 {name}: a request for {entry.adapter} changed its version")
            elif not self.pool.holds(lease):
                report(f"N5 {name}: a request for {entry.adapter} reads another's pages")

    def _check_service(self, entry: Entry) -> None:
        name, report = self.process.name, self.world.violated
        resident = self.slots.resident(entry.key)
        if resident is None or not self.pool.holds(resident):
            report(f"N5 {name} serves {entry.adapter}@{entry.gen}, which is not complete")
        if entry.gen < self._served.get(entry.adapter, 0):
            before = self._served[entry.adapter]
            report(f"I7 {name} served generation {before} of {entry.adapter}, now {entry.gen}")
        self._served[entry.adapter] = entry.gen

    def _watch(self) -> None:
        try:
            self.watcher.turn(self.hints.poll(0.5))
        finally:
            self._watching = False

    def _accept(self) -> None:
        random = self.world.random
        self._accepted += 1
        adapter = UNKNOWN if random.random() < 0.05 else random.choice(ADAPTERS)
        gen = self.reader.known_gen(TENANT, adapter)
        request = Request(
            request_id=str(self._accepted),
            tenant=TENANT,
            adapter=random.choice((adapter, adapter, adapter, f"{adapter}@v{max(1, gen)}")),
            prompt=(1,),
            min_generation=random.choice((0, 0, gen, gen + 1)),
        )
        order, unused = self._accepted, cast(Any, None)
        sequence = Sequence(request, lambda event: None, 0.0, order, 0, unused, unused)
        self.waiting.append(sequence)
        self.world.note(f"{self.process.name} is asked for {request.adapter}")
        self.admission.begin(sequence)

    def _finish(self, sequence: Sequence) -> None:
        del self.running[sequence]
        self.admission.release(sequence)

    def _cancel(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.admission.withdraw(sequence)

    def _on_ready(self, sequence: Sequence) -> None:
        entry, request = sequence.entry, sequence.request
        self.waiting.remove(sequence)
        self.world.tally.outcomes["answered"] += 1
        if entry is None or sequence.lease is None:
            self.world.violated(f"N7 {self.process.name} runs {request.adapter} on the base model")
            return
        self.running[sequence] = entry
        if request.adapter.partition("@")[0] != entry.adapter:
            self.world.violated(f"N7 {request.adapter} is answered by {entry.adapter}")
        if entry.key.vdig not in self.world.ledger.vdigs(TENANT, entry.adapter, entry.gen):
            self.world.violated(f"N3 {entry.adapter}@{entry.gen} never was {entry.key.vdig[:8]}")
        if "@" not in request.adapter and entry.gen < request.min_generation:
            self.world.violated(f"I7 generation {entry.gen} answers {request.min_generation}")

    def _on_fail(self, sequence: Sequence, error: NodeError) -> None:
        self.waiting.remove(sequence)
        self.world.tally.outcomes[f"refused: {type(error).__name__}"] += 1
        if isinstance(error, AdapterCorrupt | AdapterIncompatible | EngineFailure):
            self.world.violated(f"{self.process.name}: {sequence.request.adapter} fails: {error!r}")


class Nodes:
    """Keeps some nodes alive."""

    def __init__(self, world: World, redis: Redis, *, count: int) -> None:
        self._world = world
        self._redis = redis
        self.living = [Node(world, redis) for _ in range(count)]
        world.trouble[Fault.CRASH] = self._crash
        world.moves.append(self._move)
        world.checks.append(self._check)
        self._acted: Node | None = None

    def _move(self) -> None:
        self._acted = None
        for place, node in enumerate(self.living):
            if node.process.dead:
                self._redis.inboxes.remove(node.hints)
                self.living[place] = Node(self._world, self._redis)
        if not self._world.calm and self._world.random.random() < 0.3:
            self._acted = self._world.random.choice(self.living)
            self._acted.act()

    def _crash(self) -> bool:
        self._world.kill(self._world.random.choice(self.living).process)
        return True

    def _check(self) -> None:
        task = self._world.baton.current
        for node in self.living:
            if node is self._acted or (task is not None and task.process is node.process):
                node.check()


@contextlib.contextmanager
def without_tensors() -> Iterator[None]:
    """Let the loader lay out tattoos instead of tensors."""

    def check(files: Mapping[str, bytes], **rest: object) -> Any:
        found = [v for v, weights in weights_by_vdig().items() if weights == files[WEIGHTS_FILE]]
        if not found:
            raise InvalidAdapter("these bytes were never published")
        return SimpleNamespace(spec=SPEC, vdig=found[0])

    def lay_out(content: Any, *rest: object, **more: object) -> HostAdapter:
        return cast(HostAdapter, Tattoo(content.vdig))

    with (
        patch.object(loader_module, "check_sizes", lambda sizes, **rest: None),
        patch.object(loader_module, "check_content", check),
        patch.object(loader_module, "host_adapter", lay_out),
    ):
        yield

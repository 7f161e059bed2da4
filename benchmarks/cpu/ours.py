"""lorapool's engine without its network edge: the real loader, store protocol and scheduler."""

from __future__ import annotations

import json
import queue
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapter_store.bases import register_base
from adapter_store.commit import Publisher
from adapter_store.coordination import Hint
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.validate import read_adapter_dir
from benchmarks.cpu.adapters import parameters, write_adapter
from benchmarks.cpu.steps import StepWatch
from benchmarks.cpu.wire import serve
from inference_node.config import EngineConfig
from inference_node.engine.build import base_card, build_engine
from inference_node.request import Completed, Event, Failed, Request, Stopping

TENANT = "default"
DRAFTS = 12


class RequestFailed(Exception):
    """A measured request did not end well: there is no figure."""


class PublishersStore(MemoryStore):
    """Where a publisher works, on a machine of its own: remembers what it wrote, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[str, bytes]] = []
        self.bytes = 0

    def put_new(self, key: str, body: bytes) -> None:
        super().put_new(key, body)
        self.written.append((key, body))
        self.bytes += len(body)


class AwakeClock:
    """Passes only while a question is answered.

    Between its turns the process is stopped. By the wall's clock, whatever it knows of the store
    would be old each time it wakes, and its turn would begin with looking at every name at once.
    """

    def __init__(self) -> None:
        # Idle seconds so far, and since when it is idle: one value, as other threads read it.
        self._state: tuple[float, float | None] = (0.0, time.monotonic())

    def __call__(self) -> float:
        idle, since = self._state
        return (time.monotonic() if since is None else since) - idle

    def during(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        """`operation`, with the clock going while it runs."""

        def run(**what: Any) -> Any:
            idle, since = self._state
            assert since is not None
            idle += time.monotonic() - since
            self._state = (idle, None)
            try:
                return operation(**what)
            finally:
                self._state = (idle, time.monotonic())

        return run


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that is published elsewhere and has not reached the node's store."""

    hint: Hint
    objects: list[tuple[str, bytes]]


class News:
    """The hints a node listens to."""

    healthy = True
    gaps = 0

    def __init__(self) -> None:
        self.hints: queue.SimpleQueue[Hint] = queue.SimpleQueue()

    def poll(self, timeout_s: float, /) -> Sequence[Hint]:
        try:
            return [self.hints.get(timeout=timeout_s)]
        except queue.Empty:
            return ()


class Engine:
    """A node and a publisher. What is published reaches the node's store when it is delivered."""

    def __init__(
        self, settings: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        base = str(settings["base"])
        page = 2 * parameters(base_card(EngineConfig(base_model=base)).modules, rank=8)
        config = EngineConfig(
            base_model=base,
            pool_bytes=settings["pool_adapters"] * page,
            host_bytes=settings["host_adapters"] * page,
            max_queue=4096,
        )
        self.config = config
        self.news = News()
        self.store = MemoryStore()
        reader = Reader(self.store, clock=clock)
        self.loop = build_engine(config, reader=reader, hints=self.news, clock=clock)
        self.card = self.loop.card
        self._elsewhere = PublishersStore()
        register_base(self._elsewhere, self.card)
        self._publisher = Publisher(self._elsewhere, actor="bench", warn=lambda message: None)
        self.watch = StepWatch(self.loop)
        self._drafts: deque[Draft] = deque()
        self._count = self._made = 0
        self.loop.start()

    def facts(self) -> dict[str, Any]:
        """What the engine serves and holds, for the report and for the floors."""
        info = self.loop.info()
        modules = self.card.modules
        return {
            "kernel": info.kernel,
            "base_bytes": info.base_bytes,
            "base_bytes_bf16": info.base_bytes_bf16,
            "pool": asdict(info.pool),
            "store_bytes": self._elsewhere.bytes,
            "linear_parameters": sum(out * width for out, width in modules.values()),
            "adapter_parameters_r8": parameters(modules, rank=8),
            **self.watch.model_facts(),
        }

    def publish(self, names: Sequence[str], ranks: Sequence[int], seed: int, folder: str) -> None:
        """Make adapters, name i of rank ranks[i % len(ranks)], and deliver them.

        They stay under `folder` for the peers; without one nothing is left.
        """
        with tempfile.TemporaryDirectory() as scratch:
            for index, name in enumerate(names):
                rank = ranks[index % len(ranks)]
                draft = self._draft(name, rank=rank, seed=seed + index, folder=folder or scratch)
                self._deliver(draft)

    def top_up_drafts(self, names: Sequence[str], *, seed: int) -> None:
        """Have DRAFTS new versions of some of `names` ready, made and hashed."""
        with tempfile.TemporaryDirectory() as scratch:
            while len(self._drafts) < DRAFTS:
                self._made += 1
                name = names[self._made % len(names)]
                folder = f"{scratch}/{self._made}"
                draft = self._draft(name, rank=8, seed=seed + self._made, folder=folder)
                self._drafts.append(draft)

    @property
    def drafts_left(self) -> int:
        return len(self._drafts)

    def deliver_draft(self) -> None:
        """The next one reaches the node's store, and the node is told."""
        draft = self._drafts.popleft()
        self._deliver(draft)
        self.news.hints.put(draft.hint)

    def _draft(self, name: str, *, rank: int, seed: int, folder: str) -> Draft:
        made = write_adapter(Path(folder) / name, self.card.modules, rank=rank, seed=seed)
        local = read_adapter_dir(made, card=self.card)
        gen = self._publisher.publish(TENANT, name, local).gen
        written, self._elsewhere.written = self._elsewhere.written, []
        return Draft(Hint(TENANT, name, gen), written)

    def _deliver(self, draft: Draft) -> None:
        for key, body in draft.objects:
            self.store.put_new(key, body)

    def submit(
        self, prompt: Sequence[int], adapter: str, new: int, on_end: Callable[[Event], None]
    ) -> None:
        self._count += 1
        request = Request(
            request_id=str(self._count),
            tenant=TENANT,
            adapter=adapter,
            prompt=tuple(prompt),
            stopping=Stopping(max_new_tokens=new, ignore_eos=True),
        )

        def on_event(event: Event) -> None:
            if isinstance(event, Completed | Failed):
                on_end(event)

        self.loop.submit(request, on_event)

    def traffic(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[str], new: int, in_flight: int
    ) -> dict[str, Any]:
        """`in_flight` requests at a time, each followed by the next; greedy, no early end."""
        ended: queue.SimpleQueue[Event] = queue.SimpleQueue()
        waiting = deque(zip(prompts, adapters, strict=True))
        answers: list[Completed] = []
        start = time.perf_counter()
        for _ in range(min(in_flight, len(waiting))):
            self.submit(*waiting.popleft(), new, ended.put)
        while len(answers) < len(prompts):
            event = ended.get()
            if isinstance(event, Failed):
                raise RequestFailed(event)
            assert isinstance(event, Completed)
            answers.append(event)
            if waiting:
                self.submit(*waiting.popleft(), new, ended.put)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "lengths": [answer.usage.completion_tokens for answer in answers],
            "ttft": [answer.timings.ttft for answer in answers],
        }

    def generate(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[str], new: int
    ) -> dict[str, Any]:
        """All at once."""
        return self.traffic(prompts, adapters, new, len(prompts))

    def latencies(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[str]
    ) -> dict[str, Any]:
        """One request at a time for one token each: seconds of every request."""
        seconds = [
            self.traffic([prompt], [adapter], 1, 1)["seconds"]
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        return {"seconds": seconds}


def _start() -> tuple[Any, Mapping[str, Callable[..., Any]]]:
    from benchmarks.cpu.swap import swap

    clock = AwakeClock()
    engine = Engine(json.loads(sys.argv[1]), clock)
    operations: dict[str, Callable[..., Any]] = {
        "facts": engine.facts,
        "generate": engine.generate,
        "latencies": engine.latencies,
        "parts": lambda **what: engine.watch.parts(engine, **what),
        "publish": engine.publish,
        "swap": lambda **what: swap(engine, **what),
        "traffic": engine.traffic,
    }
    awake = {name: clock.during(operation) for name, operation in operations.items()}
    return engine.facts(), awake


if __name__ == "__main__":
    serve(_start)

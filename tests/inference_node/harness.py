"""Asks an engine and gathers its answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapter_store.bases import register_base
from adapter_store.commit import Publisher
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import BaseCard
from adapter_store.validate import read_adapter_dir
from inference_node.adapters.watcher import Hints
from inference_node.config import EngineConfig
from inference_node.engine.build import build_engine
from inference_node.engine.loop import EngineLoop
from inference_node.errors import NodeError
from inference_node.request import (
    Completed,
    Delta,
    Event,
    Failed,
    Request,
    Sampling,
    Served,
    Started,
    Stopping,
)
from inference_node.tracing import OFF, Tracing

PATIENCE = 120.0
_ids = itertools.count()


@dataclass
class Answer:
    """What came back for one request, as it comes."""

    request_id: str
    events: list[Event] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def on_event(self, event: Event) -> None:
        with self.arrived:
            self.events.append(event)
            self.arrived.notify_all()

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Completed | Failed)

    def wait(self, *, tokens: int | None = None) -> Answer:
        """Until it ended, or until `tokens` tokens have come."""
        with self.arrived:
            enough = self.arrived.wait_for(
                lambda: self.ended or (tokens is not None and len(self.token_ids) >= tokens),
                PATIENCE,
            )
        assert enough, f"no answer in {PATIENCE} s: {self.events}"
        return self

    @property
    def token_ids(self) -> list[int]:
        return [t for e in list(self.events) if isinstance(e, Delta) for t in e.token_ids]

    @property
    def text(self) -> str:
        return "".join(e.text for e in list(self.events) if isinstance(e, Delta))

    @property
    def started(self) -> Served:
        return next(e.served for e in self.events if isinstance(e, Started))

    @property
    def completed(self) -> Completed:
        last = self.wait().events[-1]
        assert isinstance(last, Completed), last
        return last

    @property
    def tokens(self) -> list[int]:
        """All of them, once it has ended well."""
        assert self.completed
        return self.token_ids

    @property
    def error(self) -> NodeError:
        last = self.wait().events[-1]
        assert isinstance(last, Failed), last
        return last.error


@dataclass
class Node:
    """An engine over a store, with a publisher beside it."""

    engine: EngineLoop
    store: ObjectStore
    card: BaseCard
    publisher: Publisher

    def ask(
        self,
        adapter: str = "",
        prompt: Sequence[int] | str = "Tell me about the sea.",
        *,
        tokens: int = 8,
        sampling: Sampling | None = None,
        stopping: Stopping | None = None,
        min_generation: int = 0,
        deadline_in: float | None = None,
        tenant: str = DEFAULT_TENANT,
        request_id: str | None = None,
        priority: int = 0,
        affinity_key: str = "",
    ) -> Answer:
        """Send a request that ignores end-of-text unless `stopping` says otherwise."""
        ids = self.engine.tokenizer.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
        answer = Answer(request_id or f"r{next(_ids)}")
        request = Request(
            request_id=answer.request_id,
            tenant=tenant,
            adapter=adapter,
            prompt=ids,
            sampling=sampling or Sampling(),
            stopping=stopping or Stopping(max_new_tokens=tokens, ignore_eos=True),
            min_generation=min_generation,
            deadline=None if deadline_in is None else time.monotonic() + deadline_in,
            priority=priority,
            affinity_key=affinity_key,
        )
        self.engine.submit(request, answer.on_event)
        return answer

    def publish(self, name: str, folder: Path, *, label: str | None = None) -> int:
        """Publish a folder; the generation it got."""
        local = read_adapter_dir(folder, card=self.card)
        return self.publisher.publish(DEFAULT_TENANT, name, local, label=label).gen

    def settle(self) -> None:
        """Wait until nothing is in progress, then check that everything adds up."""
        assert self.engine._intake.wait_empty(PATIENCE)
        self.engine.check_integrity()

    def close(self) -> None:
        self.engine.stop()


def start_node(
    config: EngineConfig,
    store: ObjectStore,
    *,
    hints: Hints | None = None,
    reader: Reader | None = None,
    tracing: Tracing = OFF,
) -> Node:
    """A running engine, its base card registered in the store."""
    engine = build_engine(config, reader=reader or Reader(store), hints=hints, tracing=tracing)
    register_base(store, engine.card)
    engine.start()
    warnings: list[str] = []
    publisher = Publisher(store, lock=None, announcer=None, actor="test", warn=warnings.append)
    return Node(engine, store, engine.card, publisher)

"""One request, what it was told, and whether that may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from adapter_store.layout import AdapterRef, parse_ref
from inference_node.errors import (
    AdapterCorrupt,
    AdapterNotFound,
    AdapterUnloaded,
    Cancelled,
    DeadlineExpired,
    EngineFailure,
    InvalidRequest,
    LoadFailed,
    NodeError,
    PoolFull,
    StaleNode,
    StoreDown,
)
from inference_node.request import Completed, Delta, Event, Failed, Request, Served, Started
from tests.chaos.stateful.history import History, Log
from tests.chaos.stateful.node import Node
from tests.chaos.stateful.shelf import Shelf

REMEMBERED_S = 60.0
"""How long a node may go on from a failure that it has seen, at most."""


@dataclass(frozen=True, slots=True)
class World:
    """What answers are held against."""

    shelf: Shelf
    node: Node
    history: History
    served: dict[tuple[str, str], int] = field(default_factory=dict)
    """The highest generation by which each bare name was ever answered."""


@dataclass
class Asked:
    """Judges every event as it comes; `faults` says what was wrong with them."""

    world: World
    request: Request
    prompt: tuple[int, int]
    """Which text, and how much of it."""
    twin: bool = False
    """Its id is another's, who is still being answered."""
    cancelled: bool = False
    floor: int = 0
    """The generation that its name had been answered by before."""
    at: float = 0.0
    faults: list[str] = field(default_factory=list)
    ended: bool = False
    last: Event | None = None
    served: Served | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        self.at = self.world.node.now
        self.floor = self.world.served.get((self.request.tenant, self.name), 0)

    def __str__(self) -> str:
        return f"{self.request.request_id} for {self.request.tenant}/{self.request.adapter}"

    @property
    def name(self) -> str:
        return self.request.adapter.partition("@")[0]

    @property
    def ref(self) -> AdapterRef:
        return parse_ref(self.request.adapter, tenant=self.request.tenant)

    @property
    def log(self) -> Log:
        return self.world.history.log(self.request.tenant, self.name)

    def failed_with(self, kind: type[NodeError]) -> bool:
        return isinstance(self.last, Failed) and isinstance(self.last.error, kind)

    def on_event(self, event: Event) -> None:
        """What the engine calls."""
        self._hold(not self.ended, f"is told {event} after its end")
        match event:
            case Started(served):
                self._hold(self.served is None, "starts twice")
                self.served = served
                self._judge_version(served)
            case Delta(_, token_ids):
                self._judge_tokens(token_ids)
            case Completed(served):
                self._hold(served == self.served, f"began as {self.served}, ended as {served}")
                whole = self.request.stopping.max_new_tokens
                self._hold(self.tokens == whole, f"completes with {self.tokens} of {whole} tokens")
                self.ended = True
            case Failed(error, _):
                self._hold(self._may_fail(error), f"fails with {error!r}: {error}")
                self.ended = True
        self.last = event

    def _judge_version(self, served: Served) -> None:
        """N3 and N7: it is an answer to what was asked."""
        if not self.request.adapter:
            self._hold(served.digest == "" and served.adapter == "", f"is served {served}")
            return
        ref, log = self.ref, self.log
        mine = (served.tenant, served.adapter) == (ref.tenant, ref.adapter)
        self._hold(mine, f"is served {served}")
        self._hold(log.labels.get(served.version) == served.digest, f"{served} never was")
        if ref.pinned:
            wanted = ref.vdig or log.labels.get(ref.label)
            self._hold(served.digest == wanted, f"is served {served.version}")
            return
        gen = served.generation
        due = log.serves(gen, self.request.affinity_key)
        self._hold(served.digest in due, f"is served {served}, generation {gen} gives {due}")
        least = max(self.floor, self.request.min_generation)
        self._hold(gen >= least, f"is served generation {gen}, at least {least} is due")
        name = (ref.tenant, ref.adapter)
        self.world.served[name] = max(gen, self.world.served.get(name, 0))

    def _judge_tokens(self, token_ids: tuple[int, ...]) -> None:
        """The tokens say who made them."""
        self.tokens += len(token_ids)
        if self.served is None:
            self._hold(False, "is given tokens before it starts")
            return
        mark = self.world.shelf.token_of(self.served.digest)
        self._hold(set(token_ids) <= {mark}, f"is served {mark}, and {token_ids} answer")

    def _may_fail(self, error: NodeError) -> bool:
        """Every error says what is true."""
        node, request = self.world.node, self.request
        causes: dict[type[NodeError], Callable[[], bool]] = {
            InvalidRequest: lambda: self.twin,
            Cancelled: lambda: self.cancelled,
            DeadlineExpired: self._is_late,
            PoolFull: self._is_late,
            StoreDown: lambda: node.door.away or node.door.troubled_at >= self.at - REMEMBERED_S,
            EngineFailure: lambda: node.copy_failed_at >= self.at,
            LoadFailed: lambda: node.copy_failed_at >= self.at - REMEMBERED_S,
            StaleNode: lambda: request.min_generation > 0 and self._was_below(),
            AdapterUnloaded: lambda: node.forced.get((request.tenant, self.name), 0.0) >= self.at,
            AdapterNotFound: lambda: self.world.history.absent_since(
                self.ref, self.at - REMEMBERED_S
            ),
            AdapterCorrupt: self._was_damaged,
        }
        cause = causes.get(type(error))
        return cause is not None and cause()

    def _is_late(self) -> bool:
        deadline = self.request.deadline
        return deadline is not None and deadline <= self.world.node.now

    def _was_below(self) -> bool:
        """Whether its generation was not there yet when it was asked for."""
        record = self.log.since(self.at - REMEMBERED_S)[0]
        return record is None or record.gen < self.request.min_generation

    def _was_damaged(self) -> bool:
        damaged = self.world.node.door.damaged
        contents = (self.world.shelf.by_vdig[vdig] for vdig in self.log.labels.values())
        return any(content.chunks & damaged for content in contents)

    def _hold(self, promise: bool, otherwise: str) -> None:
        if not promise:
            self.faults.append(f"{self} {otherwise}")

"""Tells the fleet of this node, on a thread of its own: that it lives, and what it has.

Nothing that serves waits for it. While Redis is away it says so once and goes on trying; what it
could not tell is told, whole, when Redis is back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as LateAnswer
from dataclasses import dataclass
from typing import Protocol

from adapter_store.arms import Arms
from adapter_store.errors import FleetUnseen
from adapter_store.fleet import Holding, Name, NodeCard, State, residency_digest
from inference_node.errors import NodeError
from inference_node.request import ModelInfo
from inference_node.residency import ResidencyControl
from inference_node.rpc.tally import Tally

PERIOD = 0.5
"""Seconds between two looks at what the node has."""
HEARTBEAT = 2.0
"""Seconds between two renewals of the lease, when nothing changes."""
LOOK_SECONDS = 5.0
"""How long a busy engine is waited for; with HEARTBEAT less than a lease, or it would end one."""
LEAVE_SECONDS = 3.0

log = logging.getLogger(__name__)


class Registry(Protocol):
    """Where a node tells; `adapter_store.registry.FleetRegistry` is the real one."""

    def announce(self, card: NodeCard, /) -> bool: ...

    def tell(
        self, node: str, changed: Sequence[Holding], gone: Iterable[Name], /, *, anew: bool
    ) -> None: ...

    def tell_arms(self, node: str, arms: Mapping[Name, Arms], gone: Iterable[Name], /) -> None: ...

    def leave(self, node: str, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is to the fleet."""

    id: str
    address: str
    """Where clients reach it."""


class Herald:
    """Announces one node from `start` to `stop`."""

    def __init__(
        self,
        registry: Registry,
        who: Identity,
        *,
        control: ResidencyControl,
        info: Callable[[], ModelInfo],
        tally: Tally,
        arms: Callable[[], Mapping[Name, Arms]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._who = who
        self._control = control
        self._info = info
        self._tally = tally
        self._arms = arms
        self._told_arms: Mapping[Name, Arms] = {}
        self._clock = clock
        self._state = State.READY
        self._held: tuple[Holding, ...] = ()
        self._told: dict[Name, Holding] | None = None
        """What the registry has of our holdings; None when that is not known."""
        self._card: NodeCard | None = None
        self._due = 0.0
        self._away = False
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="herald", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Say that the node takes no new requests."""
        self._state = State.DRAINING
        self._news.set()

    def stop(self) -> None:
        """Leave the fleet, within LEAVE_SECONDS; where Redis is away the lease ends by itself."""
        self._stop.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_SECONDS)

    def turn(self) -> None:
        """Look at the node, and tell what has changed. May block; raises nothing."""
        # A node that is stopping answers no more: what it had is what it has.
        with contextlib.suppress(NodeError, LateAnswer):
            self._held = self._control.holdings().result(LOOK_SECONDS)
        try:
            self._tell()
        except FleetUnseen as error:
            if not self._away:
                log.warning("the fleet does not hear of this node, which serves on: %s", error)
            self._away, self._told, self._told_arms, self._card = True, None, {}, None
        else:
            if self._away:
                log.info("the fleet hears of this node again")
            self._away = False

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.turn()
            except Exception:
                log.exception("telling the fleet of this node failed")
            self._news.wait(PERIOD)
            self._news.clear()
        with contextlib.suppress(FleetUnseen):
            self._registry.leave(self._who.id)

    def _tell(self) -> None:
        held = {holding.name: holding for holding in self._held}
        # Holdings before the card that has their digest: who sees it finds them.
        changed = self._tell_holdings(held)
        now = self._clock()
        moved = self._card is None or self._card.state is not self._state
        if changed or moved or now >= self._due:
            self._card = self._draw()
            kept = self._registry.announce(self._card)
            self._due = now + HEARTBEAT
            if not kept and held:
                self._told, self._told_arms = None, {}
                self._tell_holdings(held)
            self._tell_arms()

    def _tell_holdings(self, held: dict[Name, Holding]) -> bool:
        """Whether there was anything to tell."""
        told = self._told or {}
        changed = [holding for name, holding in held.items() if told.get(name) != holding]
        gone = told.keys() - held.keys()
        anew = self._told is None
        if anew or changed or gone:
            self._registry.tell(self._who.id, changed, gone, anew=anew)
        self._told = held
        return bool(changed or gone)

    def _tell_arms(self) -> None:
        """Of the adapters whose counts have moved, all of it: where any was lost, it is back."""
        arms = self._arms()
        told = self._told_arms
        moved = {name: counts for name, counts in arms.items() if told.get(name) != counts}
        gone = told.keys() - arms.keys()
        if moved or gone:
            self._registry.tell_arms(self._who.id, moved, gone)
        self._told_arms = arms

    def _draw(self) -> NodeCard:
        info, totals = self._info(), self._tally.totals
        return NodeCard(
            id=self._who.id,
            address=self._who.address,
            base=info.base_fingerprint,
            model=info.name,
            state=self._state,
            adapters=sum(holding.generation > 0 for holding in self._held),
            residency=residency_digest(self._held),
            resident=info.pool.resident,
            running=info.running,
            waiting=info.waiting,
            pages_free=info.pool.pages_free,
            pages_total=info.pool.pages_total,
            generated_tokens=totals.generated_tokens,
            completed=totals.completed,
            failed=totals.failed,
        )

"""The wait before a flip: until the nodes that hold an adapter have its next version ready.

The commit itself needs none of this: a node serves a version once it is whole there, and until then
the one before. What the wait adds is that no node serves the new generation before the others can.
Readiness is what nodes tell of themselves (fleet.py); a node that is not seen is not waited for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapter_store.errors import InvalidSetting, NotReady
from adapter_store.fleet import Holding, NodeCard, Standing, State

POLL_S = 0.25
ASK_S = 5.0
"""How often nodes that are not ready are asked again."""


class Fleet(Protocol):
    """Nodes as they tell of themselves; `adapter_store.registry.FleetRegistry` is the real one."""

    def nodes(self) -> list[NodeCard]: ...

    def holdings_of(
        self, nodes: Sequence[str], tenant: str, adapter: str, /
    ) -> Mapping[str, Holding]: ...

    def ask_ahead(self, nodes: Sequence[str], tenant: str, adapter: str, gen: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many of the nodes must be ready: a number of them, or so many per cent."""

    count: int | None = None
    percent: int = 100

    def of(self, nodes: int) -> int:
        """Never more than there are, and of a share never fewer than it."""
        if self.count is not None:
            return min(self.count, nodes)
        return -(-nodes * self.percent // 100)


def parse_quorum(text: str) -> Quorum:
    """`all`, `2` or `80%`. Raises InvalidSetting."""
    number = text.removesuffix("%")
    if text == "all":
        return Quorum()
    if number.isascii() and number.isdigit() and len(number) <= 6:
        if text != number and int(number) <= 100:
            return Quorum(percent=int(number))
        if text == number:
            return Quorum(count=int(number))
    raise InvalidSetting(f"{text!r} is no quorum", hint="say all, a number of nodes, or 80%")


@dataclass(frozen=True, slots=True)
class Subject:
    """The version that is to be served, and the record that names it."""

    tenant: str
    adapter: str
    gen: int
    base: str
    digest: str


@dataclass(frozen=True, slots=True)
class Stand:
    """How far one node is."""

    node: str
    address: str
    generation: int
    """What it serves under the bare name; 0 for nothing."""
    standing: Standing | None
    """Of the version that is waited for; None while the node has nothing of it."""
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.standing is not None and self.standing.ready


@dataclass(frozen=True, slots=True)
class Readiness:
    """The nodes that hold the adapter, and those that are to, by address."""

    stands: tuple[Stand, ...]

    @property
    def ready(self) -> list[Stand]:
        return [stand for stand in self.stands if stand.ready]

    @property
    def failed(self) -> list[Stand]:
        return [stand for stand in self.stands if stand.standing is Standing.FAILED]

    @property
    def waiting(self) -> list[Stand]:
        """Those that may be ready yet."""
        return [s for s in self.stands if not s.ready and s.standing is not Standing.FAILED]

    def serving(self, gen: int) -> list[Stand]:
        """Those that serve this generation or a later one."""
        return [stand for stand in self.stands if stand.generation >= gen]


class Barrier:
    """Watches the nodes of one subject."""

    def __init__(
        self,
        fleet: Fleet,
        subject: Subject,
        *,
        spread: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`spread`: so many nodes at least are to have it, though fewer hold the adapter."""
        self._fleet = fleet
        self._subject = subject
        self._spread = spread
        self._clock = clock
        self._sleep = sleep

    def look(self) -> Readiness:
        """Raises FleetUnseen."""
        subject = self._subject
        cards = [
            card
            for card in self._fleet.nodes()
            if card.base == subject.base and card.state is State.READY
        ]
        held = self._fleet.holdings_of([c.id for c in cards], subject.tenant, subject.adapter)
        chosen = {card.id for card in cards if card.id in held}
        spare = self._spread - len(chosen)
        if spare > 0:
            others = [card for card in cards if card.id not in chosen]
            chosen |= {card.id for card in nearest(others, subject)[:spare]}
        return Readiness(
            tuple(self._stand(card, held.get(card.id)) for card in cards if card.id in chosen)
        )

    def ask(self, stands: Iterable[Stand]) -> None:
        """Have these nodes fetch it. Raises FleetUnseen."""
        nodes = [stand.node for stand in stands]
        if nodes:
            subject = self._subject
            self._fleet.ask_ahead(nodes, subject.tenant, subject.adapter, subject.gen)

    def wait(
        self, quorum: Quorum, *, timeout_s: float, show: Callable[[Readiness], None]
    ) -> Readiness:
        """Until `quorum` of the nodes are ready; `show` is told whatever is seen.

        Raises FleetUnseen, and NotReady after `timeout_s`, or at once when so many nodes refuse the
        version that the rest is too few.
        """
        deadline, ask_at = self._clock() + timeout_s, self._clock()
        while True:
            seen = self.look()
            show(seen)
            needed = quorum.of(len(seen.stands))
            if len(seen.ready) >= needed:
                return seen
            if len(seen.ready) + len(seen.waiting) < needed:
                raise _not_ready(self._subject, seen, needed, "and others cannot be")
            now = self._clock()
            if now >= deadline:
                raise _not_ready(self._subject, seen, needed, f"after {timeout_s:g} s")
            if now >= ask_at:
                self.ask(seen.waiting)
                ask_at = now + ASK_S
            self._sleep(min(POLL_S, deadline - now))

    def confirm(self, gen: int, *, nodes: Readiness, timeout_s: float) -> Readiness:
        """How the nodes stand once those of `nodes` that are still there serve `gen`, or then.

        Raises FleetUnseen.
        """
        awaited = {stand.node for stand in nodes.ready}
        deadline = self._clock() + timeout_s
        while True:
            seen = self.look()
            behind = [s for s in seen.stands if s.node in awaited and s.generation < gen]
            if not behind or self._clock() >= deadline:
                return seen
            self._sleep(POLL_S)

    def _stand(self, card: NodeCard, held: Holding | None) -> Stand:
        copy = held.copies.get(self._subject.digest) if held is not None else None
        return Stand(
            card.id,
            card.address,
            held.generation if held is not None else 0,
            copy.standing if copy is not None else None,
            copy.reason if copy is not None else "",
        )


def nearest(cards: Iterable[NodeCard], subject: Subject) -> list[NodeCard]:
    """Where an adapter that nobody holds is to go: by address, so that it is the same each time."""

    def distance(card: NodeCard) -> bytes:
        drawn = f"{subject.tenant}/{subject.adapter} {card.address}"
        return hashlib.sha256(drawn.encode()).digest()

    return sorted(cards, key=distance)


def _not_ready(subject: Subject, seen: Readiness, needed: int, when: str) -> NotReady:
    late = [*seen.failed, *seen.waiting]
    said = ", ".join(f"{stand.address} ({words(stand)})" for stand in late[:8])
    more = f" and {len(late) - 8} more" if len(late) > 8 else ""
    return NotReady(
        f"{len(seen.ready)} of {len(seen.stands)} nodes have {subject.adapter} ready {when}, "
        f"{needed} are needed; nothing was activated. Not ready: {said}{more}",
        hint="wait longer with --timeout, ask for fewer with --quorum, or flip all the same with "
        "--no-wait: nodes that are not ready serve the old version until they are",
    )


def words(stand: Stand) -> str:
    """How far a node is, for people."""
    if stand.standing is Standing.FAILED:
        return f"refuses it: {stand.reason}"
    if stand.ready:
        return "ready"
    state = "fetching" if stand.standing is Standing.COMING else "not begun"
    return f"{state}: {stand.reason}" if stand.reason else state

"""An admission without threads, tensors or a store: the test says how each job ends, and when."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

from adapter_store.layout import AdapterRef
from adapter_store.record import VersionRef
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.reports import (
    Filled,
    Learned,
    Prepared,
    Resolved,
    Target,
    Unfilled,
    Unprepared,
    Unresolved,
)
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Resident, VersionKey
from inference_node.engine.admission import Admission
from inference_node.engine.sequence import Sequence
from inference_node.errors import NodeError
from tests.inference_node.engine.sequences import make_sequence

TENANT = "t"


def target(name: str, gen: int = 1, *, tenant: str = TENANT) -> Target:
    """Generation `gen` of an adapter; every generation is other content."""
    key = VersionKey(tenant, f"{name}-{gen}")
    version = VersionRef(f"v{gen}", key.vdig, "", {}, ())
    return Target(Entry(tenant, name, f"v{gen}", gen, key), version)


@dataclass
class Lookup:
    """The store was asked."""

    token: str
    ref: AdapterRef
    min_generation: int


@dataclass
class ScriptedLoader:
    """Notes the jobs it is given."""

    lookups: list[Lookup] = field(default_factory=list)
    fetches: list[Target] = field(default_factory=list)
    fills: list[Resident] = field(default_factory=list)
    begun: bool = True
    """Whether a fetch counts as begun at once, so that it cannot be called off."""

    def resolve(
        self, token: str, ref: AdapterRef, min_generation: int, *, trace: object = None
    ) -> None:
        self.lookups.append(Lookup(token, ref, min_generation))

    def prepare(self, wanted: Target) -> None:
        self.fetches.append(wanted)

    def call_off(self, key: VersionKey) -> bool:
        before = len(self.fetches)
        if not self.begun:
            self.fetches = [one for one in self.fetches if one.entry.key != key]
        return len(self.fetches) < before

    def settled(self, key: VersionKey) -> None: ...

    def on_host(self, key: VersionKey) -> None: ...

    def fill(self, staged: Resident, host: object) -> None:
        self.fills.append(staged)


class ScriptedAdmission:
    """Drives an Admission by hand; `now` is its clock."""

    def __init__(self, *, pages: int = 8, headroom: int | None = None, **settings: Any) -> None:
        """`settings` are the Admission's own."""
        self.now = 1000.0
        self.loader = ScriptedLoader()
        kept = None if headroom is None else (headroom,)
        self.slots = SlotTable(PageAllocator([pages]), headroom=kept)
        self.ready: list[Sequence] = []
        self.failed: dict[Sequence, NodeError] = {}
        watcher = SimpleNamespace(
            watch=list, note_checked=lambda *name: None, checked_at=lambda *name: None
        )
        self.admission = Admission(
            self.slots,
            cast(Any, SimpleNamespace(claim=lambda staged: None)),
            cast(Any, self.loader),
            cast(Any, watcher),
            ready=self.ready.append,
            fail=self._fail,
            clock=lambda: self.now,
            max_staleness=0.0,
            random=lambda: 0.5,
            **settings,
        )
        self._orders = itertools.count()

    def _fail(self, sequence: Sequence, error: NodeError) -> None:
        self.failed[sequence] = error
        self.admission.withdraw(sequence)

    def ask(self, name: str, *, tenant: str = TENANT, min_generation: int = 0) -> Sequence:
        sequence = make_sequence(order=next(self._orders), tenant=tenant, adapter="")
        sequence.request = replace(sequence.request, adapter=name, min_generation=min_generation)
        self.admission.begin(sequence)
        self.check()
        return sequence

    def learn(self, name: str, gen: int) -> None:
        """The watcher has seen a newer generation."""
        self.admission.on_event(Learned(TENANT, name, gen, target(name, gen)))
        self.check()

    def fetching(self) -> list[tuple[str, int]]:
        """Names and generations whose bytes are under way."""
        return [(one.entry.adapter, one.entry.gen) for one in self.loader.fetches]

    def resolve(self, answer: Target | NodeError) -> None:
        """Answer the oldest look-up."""
        token = self.loader.lookups.pop(0).token
        if isinstance(answer, Target):
            self.admission.on_event(Resolved(token, answer))
        else:
            self.admission.on_event(Unresolved(token, answer))
        self.check()

    def fetched(self, answer: int | NodeError = 1, *, at: int = 0) -> None:
        """Answer a fetch, the oldest by default: so many pages, or why not."""
        key = self.loader.fetches.pop(at).entry.key
        if isinstance(answer, int):
            host = SimpleNamespace(pages=(answer,), scale=1.0, bytes=answer)
            self.admission.on_event(Prepared(key, cast(Any, host)))
        else:
            self.admission.on_event(Unprepared(key, answer))
        self.check()

    def filled(self, error: NodeError | None = None, *, wiped: bool = True) -> None:
        """Answer the oldest copy to the device."""
        staged = self.loader.fills.pop(0)
        self.admission.on_event(
            Filled(staged) if error is None else Unfilled(staged, error, wiped=wiped)
        )
        self.check()

    def load(self, wanted: Target, pages: int = 1) -> Sequence:
        """A request for this version's name, as far as its lease; it holds it."""
        sequence = self.ask(wanted.entry.adapter, tenant=wanted.entry.tenant)
        self.resolve(wanted)
        if sequence.lease is None:
            self.fetched(pages)
            self.filled()
        assert sequence.lease is not None
        return sequence

    def end(self, sequence: Sequence) -> None:
        self.admission.release(sequence)
        self.check()

    def serves(self, name: str, *, tenant: str = TENANT) -> int | None:
        """The generation that the bare name means here."""
        entry = self.slots.serving(tenant, name)
        return None if entry is None else entry.gen

    def check(self) -> None:
        self.admission.check_integrity()

"""Garbage collection beside running publishers, without a pause and without trusting a clock.

G1  what is needed: served, staged and split contents, retention, pins, intents (retention.py)
G2  write a plan that names every stored chunk outside G1: from now on none may be reused
G3  read the intents and the pins again, and only then
G4  the log: what a publisher was about to name before it could see the plan shows in one of them
G5  delete what the plans name and nothing needs
G6  remove a plan once every chunk it names is gone

A publisher writes its intent before it reads the plans; a collector writes its plan before it reads
the intents. One of them sees the other. A chunk that a plan names can gain no new reference, so a
collector may sleep between any two steps, crash at any of them, and share the work with others:
plans that it finds are carried out like its own. Age decides only what is kept, never what is safe.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from adapter_store import layout
from adapter_store.draft import Author
from adapter_store.garbage import Survey, chunks_stored, explain
from adapter_store.intent import Plan
from adapter_store.meter import MeteredStore
from adapter_store.objects import ObjectStore
from adapter_store.reap import REAP_AFTER_S, Reaped, Reaper
from adapter_store.retention import Retention, Roots, StoreClock, in_parallel, stored_plans
from adapter_store.signing import Verifier
from adapter_store.slot import Slot
from adapter_store.upload import put_once

PLAN_KEYS = 2000
PARALLEL = 8
_SETTLE_S = 30.0


class CollectProgress(Protocol):
    """Told how far a collection is; calls come from one thread."""

    def phase(self, name: str, total: int | None) -> None:
        """What comes next, and of how many steps if that is known."""
        ...

    def step(self, count: int) -> None: ...


class NoCollectProgress:
    """Nobody is watching."""

    def phase(self, name: str, total: int | None) -> None:
        return

    def step(self, count: int) -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one collection did."""

    tenant: str
    chunks: int
    """Stored when it began."""
    deleted: int
    bytes_deleted: int
    spared: int
    """Named by a plan and needed after all; their plans stay until they are not."""
    resumed: int
    """Plans that earlier or other collectors had left."""
    plans_left: int
    requests: int


class Collector:
    """Collects the garbage of one store; any number may run at once."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        retention: Retention | None = None,
        verifier: Verifier | None = None,
        warn: Callable[[str], None],
        parallel: int = PARALLEL,
        plan_keys: int = PLAN_KEYS,
        actor: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
        now: Callable[[], str] = lambda: datetime.now(UTC).isoformat(timespec="seconds"),
    ) -> None:
        """With a verifier, what the newest trusted records serve stays whatever lies above them.

        With `parallel` 1 everything happens in the caller's thread, in a fixed order.
        """
        self._store = store
        self._retention = retention or Retention()
        self._verifier = verifier
        self._warn = warn
        self._parallel = parallel
        self._plan_keys = plan_keys
        self._actor = actor
        self._clock = clock
        self._sleep = sleep
        self._new_id = new_id
        self._now = now

    def plan(self, tenant: str, *, progress: CollectProgress | None = None) -> Survey:
        """What `collect` would delete now, and why; deletes nothing. Raises as `collect`."""
        store = MeteredStore(self._store)
        watched = progress or NoCollectProgress()
        watched.phase("looking", None)
        sizes = chunks_stored(store, tenant, warn=self._warn)
        needs = self._roots(store, tenant).read()
        garbage = {key: size for key, size in sizes.items() if not needs.cover(key)}
        watched.phase("finding out what they were", None)
        return Survey(
            tenant=tenant,
            chunks=len(sizes),
            bytes=sum(sizes.values()),
            garbage=explain(store, tenant, garbage, parallel=self._parallel),
            requests=store.requests,
        )

    def collect(self, tenant: str, *, progress: CollectProgress | None = None) -> Collected:
        """Delete what nobody needs any more.

        Raises IntegrityError when a record, an intent, a pin or a plan is damaged (then nothing is
        deleted, for what it needs is not known), StoreUnavailable, StoreRefused. What it leaves
        undone the next collection finishes.
        """
        store = MeteredStore(self._store)
        collection = _Collection(
            store,
            tenant,
            roots=self._roots(store, tenant),
            progress=progress or NoCollectProgress(),
            warn=self._warn,
            parallel=self._parallel,
        )
        older = collection.find()
        own = collection.condemn(self._write_plan(store, tenant), self._plan_keys)
        plans = {**older, **own}
        doomed = collection.decide(plans)
        collection.delete(doomed)
        left = collection.drop(plans, doomed)
        named = {key for plan in plans.values() for key in plan.keys}
        return Collected(
            tenant=tenant,
            chunks=len(collection.sizes),
            deleted=len(doomed),
            bytes_deleted=sum(collection.sizes[key] for key in doomed),
            spared=len((named & collection.sizes.keys()) - doomed),
            resumed=len(older),
            plans_left=left,
            requests=store.requests,
        )

    def reap(self, tenant: str, *, older_s: float = REAP_AFTER_S) -> Reaped:
        """Remove intents that can no longer commit, making sure of it where their slot is free.

        Raises what the store raises.
        """
        layout.check_id("tenant", tenant)
        reaper = Reaper(
            self._store,
            tenant,
            clock=self._store_clock(self._store, tenant),
            slot=Slot(self._store, clock=self._clock, sleep=self._sleep),
            author=lambda: Author(self._new_id(), 1, self._actor, self._now()),
            deadline=lambda: self._clock() + _SETTLE_S,
            warn=self._warn,
        )
        return reaper.reap(older_s)

    def _roots(self, store: ObjectStore, tenant: str) -> Roots:
        return Roots(
            store,
            layout.check_id("tenant", tenant),
            self._retention,
            clock=self._store_clock(store, tenant),
            parallel=self._parallel,
            verifier=self._verifier,
        )

    def _store_clock(self, store: ObjectStore, tenant: str) -> StoreClock:
        return StoreClock(store, tenant, new_id=self._new_id, sleep=self._sleep)

    def _write_plan(self, store: ObjectStore, tenant: str) -> Callable[[Plan], str]:
        def write(plan: Plan) -> str:
            key = layout.plan_key(tenant, self._new_id())
            put_once(store, key, plan.encode(), sleep=self._sleep)
            return key

        return write


class _Collection:
    """One run of G1 to G6."""

    def __init__(
        self,
        store: ObjectStore,
        tenant: str,
        *,
        roots: Roots,
        progress: CollectProgress,
        warn: Callable[[str], None],
        parallel: int,
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._roots = roots
        self._progress = progress
        self._warn = warn
        self._parallel = parallel
        self._garbage: list[str] = []
        self.sizes: dict[str, int] = {}
        """Bytes of every chunk stored when the collection began."""

    def find(self) -> dict[str, Plan]:
        """G1: the plans that are there already, and what is garbage beside what they name.

        The plans come first: whatever they name and the chunks' listing lacks is gone for good.
        """
        self._progress.phase("looking", None)
        plans = stored_plans(self._store, self._tenant)
        self.sizes = chunks_stored(self._store, self._tenant, warn=self._warn)
        condemned = {key for plan in plans.values() for key in plan.keys}
        free = self.sizes.keys() - condemned
        if free:
            needs = self._roots.read()
            self._garbage = sorted(key for key in free if not needs.cover(key))
        return plans

    def condemn(self, write: Callable[[Plan], str], most: int) -> dict[str, Plan]:
        """G2: name the garbage in plans of bounded size."""
        parts = range(0, len(self._garbage), most)
        plans = [Plan(tuple(self._garbage[start : start + most])) for start in parts]
        return {write(plan): plan for plan in plans}

    def decide(self, plans: dict[str, Plan]) -> set[str]:
        """G3 and G4: what the plans name and nothing needs. Call it when every plan is written."""
        named = {key for plan in plans.values() for key in plan.keys} & self.sizes.keys()
        if not named:
            return set()
        self._progress.phase("looking again", None)
        needs = self._roots.read()
        return {key for key in named if not needs.cover(key)}

    def delete(self, doomed: set[str]) -> None:
        """G5."""
        self._progress.phase("deleting", len(doomed))
        for _ in in_parallel(self._store.delete, sorted(doomed), self._parallel):
            self._progress.step(1)

    def drop(self, plans: dict[str, Plan], doomed: set[str]) -> int:
        """G6: remove the plans all of whose chunks are gone; how many stay."""
        kept = self.sizes.keys() - doomed
        finished = [key for key, plan in plans.items() if kept.isdisjoint(plan.keys)]
        for key in finished:
            self._store.delete(key)
        return len(plans) - len(finished)

"""Gets every request the lease it needs, and keeps names pointing at whole versions.

Runs on the engine thread alone, so taking a lease, choosing a victim and flipping a name cannot
race. A bare name keeps meaning the version that is resident until the newer one is resident too;
a request that carries `min_generation` waits for it instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from adapter_store.errors import InvalidName
from adapter_store.layout import AdapterRef, parse_ref
from inference_node.adapters.loader import (
    Filled,
    Learned,
    Loader,
    LoaderEvent,
    Prepared,
    Resolved,
    Target,
    Unfilled,
    Unprepared,
    Unresolved,
    Withdrawn,
)
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.slots import Entry, Resident, SlotTable, VersionKey
from inference_node.adapters.watcher import Watcher
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.relief import make_way
from inference_node.engine.sequence import Phase, Sequence
from inference_node.errors import (
    AdapterCorrupt,
    InvalidRequest,
    NodeError,
    PoolFull,
    StoreDown,
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Wanted:
    """A version on its way to the device, and who waits for it."""

    waiters: list[Sequence] = field(default_factory=list)
    names: list[Entry] = field(default_factory=list)
    """Entries to serve under their bare name once the version is resident."""
    host: HostAdapter | None = None
    """Set while it is ready and waits for pages."""
    ready_at: float = 0.0


class Admission:
    """The engine thread's side of adapter management."""

    def __init__(
        self,
        slots: SlotTable,
        pool: AdapterPool,
        loader: Loader,
        watcher: Watcher,
        *,
        ready: Callable[[Sequence], None],
        fail: Callable[[Sequence, NodeError], None],
        clock: Callable[[], float],
        max_staleness: float,
        page_wait: float = 1.0,
    ) -> None:
        """`ready` is told of each request that holds its lease, `fail` of each that never will.

        `page_wait` is how long a version waits for pages that requests hold before one of those
        makes way, in seconds.
        """
        self._slots = slots
        self._pool = pool
        self._loader = loader
        self._watcher = watcher
        self._ready = ready
        self._fail = fail
        self._clock = clock
        self._max_staleness = max_staleness
        self._page_wait = page_wait
        self._resolving: dict[str, Sequence] = {}
        self._wanted: dict[VersionKey, _Wanted] = {}
        self._reached: dict[tuple[str, str], int] = {}
        """The generation that each name has served, or was deleted at: nothing older serves it."""

    def begin(self, sequence: Sequence) -> None:
        """Take charge of a request until it is ready or failed."""
        request = sequence.request
        if not request.adapter:
            self._ready(sequence)
            return
        try:
            ref = parse_ref(request.adapter, tenant=request.tenant)
        except InvalidName as error:
            self._fail(sequence, InvalidRequest("adapter", str(error), hint=error.hint))
            return
        current = self._slots.serving(ref.tenant, ref.adapter)
        fresh = current is not None and self._may_serve(current, ref, request.min_generation)
        token, key = request.request_id, request.affinity_key
        if key and not ref.pinned:
            self._resolving[token] = sequence
            self._loader.choose(token, ref, request.min_generation, key, ask=not fresh)
        elif current is not None and fresh:
            self._pin(sequence, current)
        else:
            self._resolving[token] = sequence
            self._loader.resolve(token, ref, request.min_generation)

    def withdraw(self, sequence: Sequence) -> NodeError | None:
        """Let go of a request that ended; what to tell one that was waiting for pages."""
        self._resolving.pop(sequence.request.request_id, None)
        for wanted in self._wanted.values():
            if sequence in wanted.waiters:
                wanted.waiters.remove(sequence)
                if wanted.host is not None:
                    return PoolFull(
                        "every adapter page is leased by running requests",
                        hint="retry, or raise LORAPOOL_POOL_MB",
                        retry_after=1.0,
                    )
        return None

    def release(self, sequence: Sequence) -> None:
        """Drop a request's lease, once, and use the room that may have come free."""
        if sequence.lease is not None:
            self._slots.release(sequence.lease)
            sequence.lease = None
            self._stage_waiting()

    def relieve(self, requests: Collection[Sequence], take_off: Callable[[Sequence], None]) -> None:
        """Bound the wait for pages: versions that others have waited for too long make way.

        `requests` are all there are, `take_off` ends the running of one of them for now. Requests
        for a version that made way go on where they were once it is back, in its turn, and new ones
        wait with them. One whose bytes are not on the host any more runs to its end first.
        """
        before = self._clock() - self._page_wait
        starving = [
            wanted.host.pages
            for wanted in self._wanted.values()
            if wanted.host is not None and wanted.waiters and wanted.ready_at <= before
        ]
        if not starving:
            return
        names = [self._slots.serving(*name) for name in self._slots.served_names()]
        drained = make_way(self._slots, starving, before, requests)
        for resident in drained:
            log.debug("%s makes way: others have waited for its pages", resident.key)
            served = [entry for entry in names if entry is not None and entry.key == resident.key]
            holders = [sequence for sequence in requests if sequence.lease is resident]
            self._pause(resident, holders, served, take_off)
        if drained:
            self._watch_names()
            self._stage_waiting()

    def _pause(
        self,
        resident: Resident,
        holders: list[Sequence],
        served: list[Entry],
        take_off: Callable[[Sequence], None],
    ) -> None:
        """Let the requests of a draining version wait for it; its host copy is theirs meanwhile."""
        host = self._loader.on_host(resident.key)
        if host is None:
            return
        wanted = _Wanted(names=served, host=host, ready_at=self._clock())
        self._wanted[resident.key] = wanted
        for sequence in holders:
            take_off(sequence)
            sequence.phase = Phase.LOADING
            sequence.lease = None
            self._slots.release(resident)
            wanted.waiters.append(sequence)

    def on_event(self, event: LoaderEvent) -> None:
        """Act on what a worker thread reports."""
        match event:
            case Resolved():
                self._on_resolved(event)
            case Unresolved(token, error):
                self._on_unresolved(token, error)
            case Prepared(key, host):
                self._loader.settled(key)
                self._on_prepared(key, host)
            case Unprepared(key, error):
                self._loader.settled(key)
                self._give_up(key, error)
            case Filled(staged):
                self._slots.activate(staged, now=self._clock())
                self._on_resident(staged.key)
            case Unfilled(staged, error):
                self._slots.abandon(staged)
                self._give_up(staged.key, error)
            case Learned():
                self._on_learned(event)
            case Withdrawn():
                self._on_withdrawn(event)

    def check_integrity(self) -> None:
        self._slots.check_integrity()

    def _may_serve(self, current: Entry, ref: AdapterRef, min_generation: int) -> bool:
        """Whether what the name serves here answers the reference without asking the store."""
        if ref.pinned or current.gen < min_generation:
            return False
        checked = self._watcher.checked_at(ref.tenant, ref.adapter)
        return checked is not None and self._clock() - checked <= self._max_staleness

    def _on_resolved(self, found: Resolved) -> None:
        sequence = self._resolving.pop(found.token, None)
        if sequence is None:
            return
        target, entry = found.target, found.target.entry
        ref = parse_ref(sequence.request.adapter, tenant=entry.tenant)
        if ref.pinned:
            self._pin(sequence, entry, target)
            return
        if found.asked:
            self._watcher.note_checked(entry.tenant, entry.adapter)
        current = self._slots.serving(entry.tenant, entry.adapter)
        if current is None or current.gen < entry.gen:
            self._adopt(target)
        if found.arm is not None and found.arm.entry.key != entry.key:
            # The name goes on meaning the active version; this request alone gets the arm.
            self._pin(sequence, found.arm.entry, found.arm)
        elif current is None or current.gen < sequence.request.min_generation:
            self._pin(sequence, entry, target)
        else:
            self._pin(sequence, self._slots.serving(entry.tenant, entry.adapter) or current)

    def _on_unresolved(self, token: str, error: NodeError) -> None:
        sequence = self._resolving.pop(token, None)
        if sequence is None:
            return
        request = sequence.request
        ref = parse_ref(request.adapter, tenant=request.tenant)
        current = self._slots.serving(ref.tenant, ref.adapter)
        no_news = isinstance(error, StoreDown | AdapterCorrupt)
        if no_news and current is not None and _answers(current, ref, request.min_generation):
            self._pin(sequence, current)
        else:
            self._fail(sequence, error)

    def _pin(self, sequence: Sequence, entry: Entry, target: Target | None = None) -> None:
        """Bind the request to an entry for good; `target` is given when it may not be resident."""
        sequence.entry = entry
        if self._slots.resident(entry.key) is not None:
            sequence.lease = self._slots.lease(entry.key)
            self._ready(sequence)
            return
        assert target is not None, "a served name is resident"
        sequence.phase = Phase.LOADING
        self._want(target).waiters.append(sequence)

    def _adopt(self, target: Target) -> None:
        """Serve `target` under its bare name: now if it is resident, else when it is."""
        entry = target.entry
        if self._slots.resident(entry.key) is not None:
            self._serve(entry)
        else:
            names = self._want(target).names
            if entry not in names:
                names.append(entry)

    def _want(self, target: Target) -> _Wanted:
        key = target.entry.key
        wanted = self._wanted.get(key)
        if wanted is None:
            wanted = self._wanted[key] = _Wanted()
            self._loader.prepare(target)
        return wanted

    def _on_prepared(self, key: VersionKey, host: HostAdapter) -> None:
        wanted = self._wanted.get(key)
        if wanted is None:
            return
        wanted.host = host
        wanted.ready_at = self._clock()
        self._stage_waiting()

    def _stage_waiting(self) -> None:
        """Give pages to versions that are ready, first come first served."""
        for key, wanted in list(self._wanted.items()):
            host = wanted.host
            if host is None:
                continue
            if not wanted.waiters and not any(map(self._is_news, wanted.names)):
                del self._wanted[key]
                continue
            if not self._slots.can_make_room(host.pages):
                return
            wanted.host = None
            staged = self._slots.stage(key, wanted=host.pages, scale=host.scale)
            self._pool.claim(staged)
            self._watch_names()
            self._loader.fill(staged, host)

    def _on_resident(self, key: VersionKey) -> None:
        wanted = self._wanted.pop(key)
        for entry in wanted.names:
            self._serve(entry)
        for sequence in wanted.waiters:
            sequence.lease = self._slots.lease(key)
            self._ready(sequence)
        self._stage_waiting()

    def _serve(self, entry: Entry) -> None:
        current = self._slots.serving(entry.tenant, entry.adapter)
        if self._is_news(entry) and (current is None or current.gen < entry.gen):
            self._slots.serve(entry)
            self._reached[entry.tenant, entry.adapter] = entry.gen
            self._watch_names()

    def _is_news(self, entry: Entry) -> bool:
        """Whether its name has not gone past it while it was loading."""
        return entry.gen >= self._reached.get((entry.tenant, entry.adapter), 0)

    def _give_up(self, key: VersionKey, error: NodeError) -> None:
        """The version cannot be had: its requests fail, names keep serving what they serve."""
        wanted = self._wanted.pop(key, None)
        if wanted is None:
            return
        for entry in wanted.names:
            log.warning("%s@%s not taken into service: %s", entry.adapter, entry.label, error)
        for sequence in wanted.waiters:
            self._fail(sequence, error)

    def _on_learned(self, news: Learned) -> None:
        name = (news.tenant, news.adapter)
        if news.target is None:
            # What is on its way to the name must not revive it.
            self._reached[name] = max(news.gen, self._reached.get(name, 0))
        current = self._slots.serving(*name)
        if current is None or current.gen >= news.gen:
            return
        if news.target is None:
            self._slots.forget(*name)
            self._watch_names()
        else:
            self._adopt(news.target)

    def _on_withdrawn(self, news: Withdrawn) -> None:
        """Requests that hold the version finish with it; new ones ask what is trusted now."""
        name = (news.tenant, news.adapter)
        for wanted in self._wanted.values():
            wanted.names = [
                entry
                for entry in wanted.names
                if (entry.tenant, entry.adapter) != name or entry.gen > news.gen
            ]
        # What is trusted now may be older.
        self._reached.pop(name, None)
        current = self._slots.serving(*name)
        if current is not None and current.gen <= news.gen:
            self._slots.forget(*name)
            self._watch_names()

    def _watch_names(self) -> None:
        """Tell the watcher what is served; evictions may have ended some of it."""
        entries = (self._slots.serving(*name) for name in self._slots.served_names())
        self._watcher.watch((e.tenant, e.adapter, e.gen) for e in entries if e is not None)


def _answers(current: Entry, ref: AdapterRef, min_generation: int) -> bool:
    """Whether the store could say no better: a label and a digest never change their meaning."""
    if ref.pinned:
        return current.label == ref.label or current.key.vdig == ref.vdig
    return current.gen >= min_generation

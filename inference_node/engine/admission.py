"""Gets every request the lease it needs, and keeps names pointing at whole versions.

Runs on the engine thread alone, so taking a lease, choosing a victim and flipping a name cannot
race. A bare name keeps meaning the version that is resident until the newer one is resident too;
a request that carries `min_generation` waits for it instead.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection

from adapter_store.errors import InvalidName
from adapter_store.layout import AdapterRef, parse_ref
from inference_node.adapters.allowance import Allowance
from inference_node.adapters.loader import Loader
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.reports import (
    AskedAhead,
    Heard,
    Learned,
    LoaderEvent,
    Resolved,
    Target,
    Unresolved,
    Withdrawn,
)
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Residency, Resident
from inference_node.adapters.watcher import Watcher
from inference_node.engine.arrivals import Arrivals
from inference_node.engine.claims import Claim
from inference_node.engine.foresight import Foresight
from inference_node.engine.lookups import Lookups
from inference_node.engine.names import Names
from inference_node.engine.relief import make_way
from inference_node.engine.sequence import Phase, Sequence
from inference_node.errors import AdapterCorrupt, InvalidRequest, NodeError, StoreDown
from inference_node.quotas import QuotaTable

log = logging.getLogger(__name__)


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
        refuse_stale_after: float | None = None,
        page_wait: float = 1.0,
        quotas: Callable[[], QuotaTable] = QuotaTable,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`ready` is told of each request that holds its lease, `fail` of each that never will.

        `page_wait` is how long a version waits for pages that requests hold before one of those
        makes way, in seconds. `quotas` says what tenants may load. `random` gives numbers from 0 to
        1.
        """
        self._slots = slots
        self._loader = loader
        self._watcher = watcher
        self.names = Names(slots, watcher)
        self.lookups = Lookups(loader, clock=clock, random=random)
        allowance = Allowance(quotas, slots, on_host=loader.on_host, clock=clock)
        self.arrivals = Arrivals(
            slots, pool, loader, self.names, allowance, clock=clock, random=random
        )
        self.foresight = Foresight(slots, loader, self.arrivals, self.names, clock=clock)
        self._ready = ready
        self._fail = fail
        self._clock = clock
        self._max_staleness = max_staleness
        self._refuse_stale_after = refuse_stale_after
        self._page_wait = page_wait
        self._claims: dict[Sequence, Claim] = {}
        """Of requests that hold no lease yet, or none for now."""
        self.made_way = 0
        """Versions that were taken off running requests because others had waited too long."""

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
        self.claim(self._claim_of(sequence, ref))

    def claim(self, claim: Claim) -> None:
        """Find out which version a claim is for, and see that it is granted."""
        ref = claim.ref
        if not claim.patient and self.names.serving(ref.tenant, ref.adapter) is None:
            refusal = self.arrivals.refusal(ref)
            if refusal is not None:
                claim.refuse(refusal)
                return
        self._look_up([claim])

    def _look_up(self, claims: list[Claim]) -> None:
        """What claims for the same thing mean: here, or by asking the store once for all."""
        claim = claims[0]
        ref, split = claim.ref, bool(claim.affinity) and not claim.ref.pinned
        current = self.names.serving(ref.tenant, ref.adapter)
        fresh = current is not None and self._may_serve(current, ref, claim.min_generation)
        if current is not None and fresh and not split:
            for claim in claims:
                self._bind(claim, current)
            return
        known = split and (fresh or (current is not None and self.lookups.store_is_away))
        error = self.lookups.ask(claims, store=not known)
        if error is not None:
            for claim in claims:
                self._unresolved(claim, error)

    def withdraw(self, sequence: Sequence) -> NodeError | None:
        """Let go of a request that ended; what to tell one that was waiting for pages."""
        claim = self._claims.pop(sequence, None)
        return None if claim is None else self.withdraw_claim(claim)

    def withdraw_claim(self, claim: Claim) -> NodeError | None:
        """Neither grant nor refuse it; what to tell one that was waiting for pages."""
        self.lookups.withdraw(claim)
        return self.arrivals.withdraw(claim)

    def release(self, sequence: Sequence) -> None:
        """Drop a request's lease, once, and use the room that may have come free."""
        if sequence.lease is not None:
            self._slots.release(sequence.lease, now=self._clock())
            sequence.lease = None
            self.arrivals.stage()

    def relieve(self, requests: Collection[Sequence], take_off: Callable[[Sequence], None]) -> None:
        """Bound the wait for pages: versions that others have waited for too long make way.

        `requests` are all there are, `take_off` ends the running of one of them for now. Requests
        for a version that made way go on where they were once it is back, in its turn, and new ones
        wait with them. One whose bytes are not on the host any more runs to its end first.
        """
        before = self._clock() - self._page_wait
        starving = self.arrivals.starving(before)
        if not starving:
            return
        wanted = [arrival.host.pages for arrival in starving if arrival.host is not None]
        newcomer = not all(map(self.arrivals.is_swap, starving))
        served = {name: self.names.serving(*name) for name in self._slots.served_names()}
        drained = make_way(self._slots, wanted, before, requests, newcomer=newcomer)
        self.made_way += len(drained)
        for resident in drained:
            log.debug("%s makes way: others have waited for its pages", resident.key)
            names = [e for e in served.values() if e is not None and e.key == resident.key]
            holders = [sequence for sequence in requests if sequence.lease is resident]
            self._pause(resident, holders, names, take_off)
        if drained:
            self.names.tell_watcher()
            self.arrivals.stage()

    def _pause(
        self,
        resident: Resident,
        holders: list[Sequence],
        names: list[Entry],
        take_off: Callable[[Sequence], None],
    ) -> None:
        """Let the requests of a draining version wait for it; its host copy is theirs meanwhile."""
        host = self._loader.on_host(resident.key)
        if host is None:
            return
        claims = []
        for sequence in holders:
            take_off(sequence)
            sequence.phase = Phase.LOADING
            sequence.lease = None
            self._slots.release(resident, now=self._clock())
            request = sequence.request
            ref = parse_ref(request.adapter, tenant=request.tenant)
            claims.append(self._claim_of(sequence, ref))
        entry = next(reversed(resident.known_as.values()))
        self.arrivals.bring_back(entry, host, names, claims)

    def unload(self, held: Resident, adapter: str) -> bool:
        """Take a version out of service under one adapter; whether another one keeps it.

        Unless one of equal content does, new requests are refused the version, and its pages are
        free once those that hold it end.
        """
        if any(entry.adapter != adapter for entry in self.names.served_by(held.key)):
            self.names.leave((held.key.tenant, adapter), held.key)
            held.disown(adapter)
            return True
        if held.state is Residency.RESIDENT:
            self._slots.drain(held.key)
            self.names.tell_watcher()
            self.arrivals.stage()
        return False

    def on_event(self, event: LoaderEvent) -> None:
        """Act on what a worker thread reports."""
        match event:
            case Resolved():
                self._on_resolved(event)
            case Unresolved():
                self._on_unresolved(event)
            case Heard(names):
                self.lookups.heard(names)
            case Learned():
                self._on_learned(event)
            case Withdrawn():
                self._on_withdrawn(event)
            case AskedAhead(tenant, adapter):
                self.foresight.asked((tenant, adapter))
            case _:
                self.arrivals.on_event(event)

    def soonest(self) -> float | None:
        """When `tick` has something to do."""
        times = (self.arrivals.soonest(), self.foresight.soonest())
        return min((time for time in times if time is not None), default=None)

    def tick(self) -> None:
        """Try again what failed and is due; call between any two steps."""
        self.arrivals.tick()
        self.foresight.tick()

    def check_integrity(self) -> None:
        """Raises AssertionError when pages, names and claims do not add up."""
        self._slots.check_integrity()
        self.names.check_integrity()
        self.lookups.check_integrity()
        self.arrivals.check_integrity()
        self.foresight.check_integrity()
        for claim in self._claims.values():
            self.check_claim(claim)

    def waiting(self) -> Collection[Sequence]:
        """Requests that hold no lease, or none for now."""
        return self._claims.keys()

    def check_claim(self, claim: Claim) -> None:
        """It waits in exactly one place, so that it is answered once."""
        places = self.lookups.count(claim) + self.arrivals.count(claim)
        assert places == 1, f"the claim {claim.token} waits in {places} places"

    def _claim_of(self, sequence: Sequence, ref: AdapterRef) -> Claim:
        def bind(entry: Entry) -> None:
            sequence.entry = entry
            sequence.phase = Phase.LOADING

        def grant() -> None:
            assert sequence.entry is not None
            del self._claims[sequence]
            sequence.lease = self._slots.lease(sequence.entry.key)
            sequence.lease.know(sequence.entry)
            self._ready(sequence)

        def refuse(error: NodeError) -> None:
            del self._claims[sequence]
            self._fail(sequence, error)

        request = sequence.request
        claim = Claim(
            # An id may be used again while the answer for the one before is still on its way.
            f"{request.request_id}#{sequence.order}",
            ref,
            request.min_generation,
            bind,
            grant,
            refuse,
            affinity=request.affinity_key,
            trace=request.trace,
        )
        self._claims[sequence] = claim
        return claim

    def _may_serve(self, current: Entry, ref: AdapterRef, min_generation: int) -> bool:
        """Whether what the name serves here answers the reference without asking the store."""
        if ref.pinned or current.gen < min_generation:
            return False
        checked = self._watcher.checked_at(ref.tenant, ref.adapter)
        return checked is not None and self._clock() - checked <= self._max_staleness

    def _on_resolved(self, found: Resolved) -> None:
        self.arrivals.meter.looked_up(found.seconds)
        lookup = self.lookups.answered(found.token, None, asked=found.asked)
        if lookup is None:
            return
        entry = found.target.entry
        if found.asked and not lookup.question.ref.pinned:
            self._watcher.note_checked(entry.tenant, entry.adapter)
        for claim in lookup.claims:
            self._resolved(claim, found)
        if not lookup.question.ref.pinned:
            self.foresight.expect((entry.tenant, entry.adapter), entry.gen, found.ahead)
        if lookup.late:
            self._look_up(lookup.late)

    def _resolved(self, claim: Claim, found: Resolved) -> None:
        target, entry = found.target, found.target.entry
        if claim.ref.pinned:
            self._bind(claim, entry, target)
            return
        current = self.names.serving(entry.tenant, entry.adapter)
        if found.arm is not None and found.arm.entry.key != entry.key:
            # The name goes on meaning the active version; this claim alone gets the arm.
            if current is None or current.gen < entry.gen:
                self.arrivals.bring(target)
            self._bind(claim, found.arm.entry, found.arm)
        elif current is None or current.gen < claim.min_generation:
            # The claim first: for it the version is fetched at once, and its name goes with it.
            self._bind(claim, entry, target)
            self.arrivals.bring(target)
        else:
            if current.gen < entry.gen:
                self.arrivals.bring(target)
            self._bind(claim, self.names.serving(entry.tenant, entry.adapter) or current)

    def _on_unresolved(self, answer: Unresolved) -> None:
        self.arrivals.meter.looked_up(answer.seconds, answer.error.reason)
        lookup = self.lookups.answered(answer.token, answer.error)
        if lookup is None:
            return
        for claim in lookup.claims:
            self._unresolved(claim, answer.error)
        if lookup.late:
            self._look_up(lookup.late)

    def _unresolved(self, claim: Claim, error: NodeError) -> None:
        ref = claim.ref
        current = self.names.serving(ref.tenant, ref.adapter)
        no_news = isinstance(error, StoreDown | AdapterCorrupt)
        if (
            no_news
            and current is not None
            and _answers(current, ref, claim.min_generation)
            and not self._too_stale(current)
        ):
            self._bind(claim, current)
        else:
            claim.refuse(error)

    def _too_stale(self, current: Entry) -> bool:
        limit = self._refuse_stale_after
        return limit is not None and self.names.staleness(current, self._clock()) > limit

    def _bind(self, claim: Claim, entry: Entry, target: Target | None = None) -> None:
        """Bind the claim to an entry for good; `target` is given when it may not be resident."""
        claim.bind(entry)
        if target is not None:
            self.arrivals.claim(claim, target)
        else:
            claim.grant()

    def _on_learned(self, news: Learned) -> None:
        name = (news.tenant, news.adapter)
        self.lookups.heard([name])
        self.names.learned(name, news.gen)
        if news.target is None:
            self.names.deleted(name, news.gen)
        else:
            current = self.names.serving(*name)
            prepared = current is None and self.foresight.is_asked(name)
            if prepared or (current is not None and current.gen < news.gen):
                self.arrivals.bring(news.target)
        self.foresight.expect(name, news.gen, news.ahead)

    def _on_withdrawn(self, news: Withdrawn) -> None:
        """Requests that hold the version finish with it; new ones ask what is trusted now."""
        name = (news.tenant, news.adapter)
        self.foresight.forget(name)
        self.arrivals.forget(name, news.gen)
        self.names.withdrawn(name, news.gen)


def _answers(current: Entry, ref: AdapterRef, min_generation: int) -> bool:
    """Whether the store could say no better: a label and a digest never change their meaning."""
    if ref.pinned:
        return current.label == ref.label or current.key.vdig == ref.vdig
    return current.gen >= min_generation

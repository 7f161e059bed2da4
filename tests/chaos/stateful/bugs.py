"""Bugs to seed into the node, one at a time: each must be found, or the zero means nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from inference_node.adapters.loader import Loader
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.reports import Filled
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Residency, Resident, VersionKey
from inference_node.adapters.weights import HostAdapter
from inference_node.engine import sequence as requests
from inference_node.engine.admission import Admission
from inference_node.engine.arrivals import Arrivals
from inference_node.engine.claims import Claim
from inference_node.engine.lookups import Lookups
from inference_node.engine.loop import EngineLoop
from inference_node.engine.prefix import PrefixNames
from inference_node.engine.runner import Runner
from inference_node.engine.scheduler import Step
from inference_node.errors import NodeError
from inference_node.kernels.lora import SlotPages
from inference_node.model.batch import ForwardBatch

Bug = Callable[[], AbstractContextManager[Any]]


def evict_leased() -> AbstractContextManager[Any]:
    """Eviction does not ask who holds a version."""

    def all_of_them(self: SlotTable) -> list[Resident]:
        return [one for one in self._residents.values() if one.state is Residency.RESIDENT]

    return patch.object(SlotTable, "_idle", all_of_them)


def free_at_once() -> AbstractContextManager[Any]:
    """A version that makes way gives its pages back while requests still read them."""

    def drain(self: SlotTable, key: VersionKey) -> None:
        found = self.resident(key)
        if found is not None:
            self._remove(found)
            self._leaving.append(found)
            found.state = Residency.DRAINING
            self.allocator.release(found.pages)

    return patch.object(SlotTable, "drain", drain)


def flip_before_filled() -> AbstractContextManager[Any]:
    """A version is taken into service while its pages are still being written."""

    def write(self: Loader, staged: Resident, host: HostAdapter) -> None:
        with contextlib.suppress(Exception):
            self._pool.write(staged, host)

    def fill(self: Loader, staged: Resident, host: HostAdapter) -> None:
        self._post(Filled(staged))
        self._workers.submit(write, self, staged, host)

    return patch.object(Loader, "fill", fill)


def release_twice() -> AbstractContextManager[Any]:
    """A request that is cancelled drops its lease, and drops it again at its end."""
    honest = Admission.withdraw

    def withdraw(self: Admission, sequence: requests.Sequence) -> NodeError | None:
        if sequence.lease is not None and sequence.lease.leases > 1:
            self._slots.release(sequence.lease)
        return honest(self, sequence)

    return patch.object(Admission, "withdraw", withdraw)


def follow_the_name(loop: EngineLoop, sequence: requests.Sequence) -> None:
    """A request that has its version goes on with what its name means by now."""
    entry = sequence.entry
    if entry is None or sequence.lease is None:
        return
    now = loop._slots.serving(entry.tenant, entry.adapter)
    if now is not None and now is not entry:
        loop._slots.release(sequence.lease)
        sequence.entry, sequence.lease = now, loop._slots.lease(now.key)


def resolve_again() -> AbstractContextManager[Any]:
    """A request that was preempted goes on with what its name means by then."""
    honest = EngineLoop._turn

    def turn(self: EngineLoop) -> bool:
        stuck = honest(self)
        for sequence in self._scheduler.waiting:
            if sequence.produced:
                follow_the_name(self, sequence)
        return stuck

    return patch.object(EngineLoop, "_turn", turn)


def base_for_failed() -> AbstractContextManager[Any]:
    """A request whose version cannot be loaded is answered by the base model."""
    honest = Admission._claim_of

    def claim_of(self: Admission, sequence: requests.Sequence, ref: Any) -> Claim:
        claim = honest(self, sequence, ref)

        def shrug(error: NodeError) -> None:
            del self._claims[sequence]
            self._ready(sequence)

        claim.refuse = shrug
        return claim

    return patch.object(Admission, "_claim_of", claim_of)


def _root(*fields: str) -> Bug:
    """Names of KV blocks that leave out a part of what the blocks depend on."""

    def root(self: PrefixNames, asked: requests.Sequence) -> bytes:
        entry = asked.entry
        known = {
            "tenant": asked.request.tenant,
            "adapter": entry.adapter if entry else "",
            "vdig": entry.key.vdig if entry else "",
        }
        return "/".join(known[field] for field in fields).encode()

    return lambda: patch.object(PrefixNames, "root", root)


@contextlib.contextmanager
def allocate_in_part() -> Iterator[None]:
    """A version is given the pages there are, and goes without the rest."""

    def allocate(self: PageAllocator, wanted: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(group.pop() for _ in range(min(want, len(group))))
            for group, want in zip(self._free, wanted, strict=True)
        )

    def write(self: AdapterPool, staged: Resident, host: HostAdapter) -> None:
        for pool, pages, group in zip(self.groups, staged.pages, host.groups, strict=True):
            assert group is not None
            for page, a, b in zip(pages, group.a, group.b, strict=False):
                pool.a[page], pool.b[page] = a, b

    def can_allocate(self: PageAllocator, wanted: Sequence[int]) -> bool:
        return all(free > 0 for free in self.free)

    with (
        patch.object(PageAllocator, "allocate", allocate),
        patch.object(PageAllocator, "can_allocate", can_allocate),
        patch.object(AdapterPool, "write", write),
    ):
        yield


def trust_page_lists() -> AbstractContextManager[Any]:
    """Nobody looks at the stamps of the pages that a step is led to."""
    return patch.object(
        AdapterPool, "routing", lambda self, held: SlotPages(held.pages, held.scale, held.stamp)
    )


def remember_routing() -> AbstractContextManager[Any]:
    """Which pages a row reads is remembered while the number of rows stays the same."""
    honest = Runner.batch

    def batch(self: Runner, step: Step) -> ForwardBatch:
        memo: dict[tuple[int, int], SlotPages] = self.__dict__.setdefault("_memo", {})
        routing = self._pool.routing
        rows = iter(range(len(step.work)))

        def remembered(held: Resident) -> SlotPages:
            return memo.setdefault((len(step.work), next(rows)), routing(held))

        with patch.object(self._pool, "routing", remembered):
            return honest(self, step)

    return patch.object(Runner, "batch", batch)


def fold_scale_again() -> AbstractContextManager[Any]:
    """Each load multiplies the copy on the host by the scale once more."""
    honest = Loader._fill

    def fill(self: Loader, staged: Resident, host: HostAdapter) -> None:
        honest(self, staged, host)
        for group in host.groups:
            if group is not None:
                group.b.mul_(host.scale)

    return patch.object(Loader, "_fill", fill)


def serve_what_left() -> AbstractContextManager[Any]:
    """Eviction takes the pages and leaves the name."""

    def remove(self: SlotTable, resident: Resident) -> None:
        del self._residents[resident.key]
        self._recency.remove(resident.key)

    return patch.object(SlotTable, "_remove", remove)


def forget_who_waits() -> AbstractContextManager[Any]:
    """A version that cannot be had goes, and nobody tells its requests."""

    def give_up(self: Arrivals, key: VersionKey, error: NodeError) -> None:
        self._coming.pop(key, None)

    return patch.object(Arrivals, "_give_up", give_up)


@contextlib.contextmanager
def answer_by_id() -> Iterator[None]:
    """What a reference means is told to whoever has the id of the request that asked."""
    honest_claim, honest_begin = Admission._claim_of, Lookups._begin

    def claim_of(self: Admission, sequence: requests.Sequence, ref: Any) -> Claim:
        claim = honest_claim(self, sequence, ref)
        claim.token = sequence.request.request_id
        return claim

    def begin(self: Lookups, question: Any, claims: list[Claim]) -> None:
        before = self._running.pop(claims[0].token, None)
        if before is not None:
            del self._asked[before.question]
        honest_begin(self, question, claims)

    with (
        patch.object(Admission, "_claim_of", claim_of),
        patch.object(Lookups, "_begin", begin),
    ):
        yield


def ignore_min_generation() -> AbstractContextManager[Any]:
    """What is resident answers, whatever generation was asked for."""
    honest = Admission._may_serve

    def may_serve(self: Admission, current: Entry, ref: Any, least: int) -> bool:
        return honest(self, current, ref, 0)

    return patch.object(Admission, "_may_serve", may_serve)


BUGS: Mapping[str, Bug] = {
    "evict-leased": evict_leased,
    "free-at-once": free_at_once,
    "flip-before-filled": flip_before_filled,
    "release-twice": release_twice,
    "resolve-again": resolve_again,
    "base-for-failed": base_for_failed,
    "prefix-without-version": _root("tenant", "adapter"),
    "prefix-without-tenant": _root("vdig"),
    "allocate-in-part": allocate_in_part,
    "trust-page-lists": trust_page_lists,
    "remember-routing": remember_routing,
    "fold-scale-again": fold_scale_again,
    "serve-what-left": serve_what_left,
    "forget-who-waits": forget_who_waits,
    "answer-by-id": answer_by_id,
    "ignore-min-generation": ignore_min_generation,
}

SOON_FOUND = ("evict-leased", "flip-before-filled", "remember-routing", "base-for-failed")
"""Bugs that a few examples show."""

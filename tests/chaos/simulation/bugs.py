"""Bugs to seed into the real code, one at a time: each must be found, or the zero means nothing.

The first ten are the mutants of the protocol's model, made in the product instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from adapter_store import attempt, layout, settle
from adapter_store.attempt import Run
from adapter_store.errors import AlreadyExists, OutcomeUnknown, StoreUnavailable
from adapter_store.gc import _Collection
from adapter_store.intent import Plan
from adapter_store.log import Known
from adapter_store.reader import Reader
from adapter_store.reap import Reaper
from adapter_store.record import Chunk, FileEntry, Record, VersionRef, decode_record
from adapter_store.retention import Needs, Roots
from adapter_store.slot import Slot
from adapter_store.upload import Placed, Uploader, put_once
from inference_node.adapters.loader import Loader
from inference_node.adapters.reports import Filled
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Resident
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.admission import Admission
from inference_node.engine.claims import Claim
from inference_node.errors import NodeError
from tests.chaos.simulation.bucket import Bucket

Bug = Callable[[], AbstractContextManager[Any]]


def reuse_key() -> AbstractContextManager[Any]:
    """A second attempt sends its chunks under the keys of the first."""
    honest = layout.blob_key
    return patch.object(
        layout, "blob_key", lambda tenant, sha256, txid, attempt: honest(tenant, sha256, txid, 1)
    )


@contextlib.contextmanager
def plans_before_intent() -> Iterator[None]:
    """The publisher looks for plans first and writes its intent second."""
    announce, condemned = Run._announce_intent, attempt.condemned_keys
    seen: dict[int, frozenset[str]] = {}

    def look_then_announce(self: Run, *args: Any) -> None:
        seen[id(self._store)] = condemned(self._store, self._tenant)
        announce(self, *args)

    with (
        patch.object(Run, "_announce_intent", look_then_announce),
        patch.object(attempt, "condemned_keys", lambda store, tenant: seen[id(store)]),
    ):
        yield


def no_intent() -> AbstractContextManager[Any]:
    """The publisher writes none."""
    return patch.object(Run, "_announce_intent", lambda self, *args: None)


def ignore_plans() -> AbstractContextManager[Any]:
    """The publisher reuses chunks that a collector is about to delete."""
    return patch.object(attempt, "condemned_keys", lambda store, tenant: frozenset())


def timeout_is_failure() -> AbstractContextManager[Any]:
    """A commit without an answer is reported as failed; nobody looks at the slot."""

    def hasty(self: Slot, record: Record, **rest: object) -> Record:
        key = layout.log_key(record.tenant, record.adapter, record.gen)
        try:
            self._store.put_new(key, record.encode())
        except OutcomeUnknown as error:
            raise StoreUnavailable("timed out, so it failed") from error
        except AlreadyExists:
            return decode_record(self._store.get(key))
        return record

    return patch.object(Slot, "commit", hasty)


def unconditional_put() -> AbstractContextManager[Any]:
    """The lock alone keeps publishers apart: the last writer of a slot wins."""
    honest = Bucket.put_new

    def overwrite(self: Bucket, key: str, body: bytes) -> None:
        (self.write if "/log/" in key else lambda key, body: honest(self, key, body))(key, body)

    return patch.object(Bucket, "put_new", overwrite)


def reader_steps_back() -> AbstractContextManager[Any]:
    """A reader remembers what it read last, not what is newest."""

    def learn(self: Reader, found: Known) -> Known:
        with self._lock:
            self._known[found.record.tenant, found.record.adapter] = found
        return found

    return patch.object(Reader, "_learn", learn)


def settle_without_filling() -> AbstractContextManager[Any]:
    """An empty slot is taken for proof that a commit did not land."""
    return patch.object(Slot, "occupy", lambda self, fence, deadline: fence)


@contextlib.contextmanager
def fence_changes_content() -> Iterator[None]:
    """The record that calls a commit off also ends what is served."""
    honest = attempt.fence_record

    def altered(head: Record | None, *args: Any, **names: Any) -> Record:
        return replace(honest(head, *args, **names), active=None)

    with (
        patch.object(attempt, "fence_record", altered),
        patch.object(settle, "fence_record", altered),
    ):
        yield


@contextlib.contextmanager
def commit_before_chunks() -> Iterator[None]:
    """The record is committed first, and its chunks are sent after."""
    place, announce = Uploader.place, Run._announce
    waiting: dict[int, Callable[[], object]] = {}

    def later(self: Uploader, files: tuple[FileEntry, ...]) -> Placed:
        waiting[id(self._store)] = lambda: place(self, files)

        def named(file: FileEntry) -> FileEntry:
            keys = [
                layout.blob_key(self._tenant, c.sha256, self._txid, self._attempt)
                for c in file.chunks
            ]
            pairs = zip(file.chunks, keys, strict=True)
            return replace(file, chunks=tuple(replace(c, key=key) for c, key in pairs))

        return Placed(tuple(named(file) for file in files), 0)

    def upload_now(self: Run, gen: int) -> None:
        waiting.pop(id(self._store))()
        announce(self, gen)

    with patch.object(Uploader, "place", later), patch.object(Run, "_announce", upload_now):
        yield


def acknowledge_unread() -> AbstractContextManager[Any]:
    """A taken slot is taken for our own: nobody reads who holds it."""

    def trusting(self: Slot, record: Record, **rest: object) -> Record:
        key = layout.log_key(record.tenant, record.adapter, record.gen)
        put_once(self._store, key, record.encode(), sleep=self._sleep)
        return record

    return patch.object(Slot, "commit", trusting)


def single_phase_gc() -> AbstractContextManager[Any]:
    """A collector deletes what it found, without looking again."""

    def at_once(self: _Collection, plans: Mapping[str, Plan]) -> set[str]:
        return {key for plan in plans.values() for key in plan.keys} & self.sizes.keys()

    return patch.object(_Collection, "decide", at_once)


def log_before_intents() -> AbstractContextManager[Any]:
    """A collector reads the log first and the intents after it."""

    def turned_round(self: Roots) -> Needs:
        logged, pinned = self._logged(), self._pinned()
        return Needs(logged | pinned, self._announced())

    return patch.object(Roots, "read", turned_round)


def reap_without_fence() -> AbstractContextManager[Any]:
    """A reaper removes intents whose slots are free."""
    return patch.object(Reaper, "_fence", lambda self, intent: None)


def drop_plan_early() -> AbstractContextManager[Any]:
    """A collector removes plans when it is done, whatever became of what they name."""

    def drop_all(self: _Collection, plans: Mapping[str, Plan], doomed: set[str]) -> int:
        for key in plans:
            self._store.delete(key)
        return 0

    return patch.object(_Collection, "drop", drop_all)


def ignore_pins() -> AbstractContextManager[Any]:
    """A collector does not ask what is pinned."""
    return patch.object(Roots, "_pinned", lambda self: frozenset())


@contextlib.contextmanager
def forget_staged() -> Iterator[None]:
    """A collector keeps what is active and forgets what is staged or split."""

    def active_only(record: Record) -> tuple[VersionRef, ...]:
        return () if record.active is None else (record.active,)

    with patch.object(Record, "contents", active_only):
        yield


def no_plan() -> AbstractContextManager[Any]:
    """A collector keeps its plan to itself."""

    def silent(self: _Collection, write: object, most: int) -> dict[str, Plan]:
        return {"unwritten": Plan(tuple(self._garbage))} if self._garbage else {}

    return patch.object(_Collection, "condemn", silent)


def roll_back_unplaced() -> AbstractContextManager[Any]:
    """Older content is named again under its old keys, whoever may be deleting them."""
    honest = Uploader._place

    def trusting(self: Uploader, chunk: Chunk) -> str:
        return chunk.key or honest(self, chunk)

    return patch.object(Uploader, "_place", trusting)


def serve_before_filled() -> AbstractContextManager[Any]:
    """A node takes pages into service while they are still being written."""
    honest = Loader._fill

    def early(self: Loader, staged: Resident, host: HostAdapter) -> None:
        self._post(Filled(staged))
        with patch.object(self, "_post", lambda event: None):
            honest(self, staged, host)

    return patch.object(Loader, "_fill", early)


def evict_leased() -> AbstractContextManager[Any]:
    """A node evicts versions that requests still hold."""

    def all_of_them(self: SlotTable) -> list[Resident]:
        return [one for one in self._residents.values() if one.state.value == "resident"]

    return patch.object(SlotTable, "_idle", all_of_them)


def base_for_unknown() -> AbstractContextManager[Any]:
    """A request whose adapter cannot be had is answered by the base model."""

    def shrug(self: Admission, claim: Claim, error: NodeError) -> None:
        sequence = next(s for s, waiting in self._claims.items() if waiting is claim)
        del self._claims[sequence]
        self._ready(sequence)

    return patch.object(Admission, "_unresolved", shrug)


BUGS: Mapping[str, Bug] = {
    "reuse-key": reuse_key,
    "plans-before-intent": plans_before_intent,
    "no-intent": no_intent,
    "ignore-plans": ignore_plans,
    "single-phase-gc": single_phase_gc,
    "log-before-intents": log_before_intents,
    "reap-without-fence": reap_without_fence,
    "drop-plan-early": drop_plan_early,
    "timeout-is-failure": timeout_is_failure,
    "unconditional-put": unconditional_put,
    "reader-steps-back": reader_steps_back,
    "settle-without-filling": settle_without_filling,
    "fence-changes-content": fence_changes_content,
    "commit-before-chunks": commit_before_chunks,
    "acknowledge-unread": acknowledge_unread,
    "ignore-pins": ignore_pins,
    "forget-staged": forget_staged,
    "no-plan": no_plan,
    "roll-back-unplaced": roll_back_unplaced,
    "serve-before-filled": serve_before_filled,
    "evict-leased": evict_leased,
    "base-for-unknown": base_for_unknown,
}

SOON_FOUND = ("ignore-plans", "timeout-is-failure", "single-phase-gc", "serve-before-filled")
"""Bugs that a few dozen seeds show."""

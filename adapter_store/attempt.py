"""One change on its way through the protocol that commit.py draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from adapter_store import layout
from adapter_store.coordination import Announcer, PublishLock
from adapter_store.draft import (
    Author,
    Change,
    State,
    chunks_of,
    fence_record,
    next_record,
    state_of,
)
from adapter_store.errors import (
    Conflict,
    NotFound,
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from adapter_store.fencing import Fencing
from adapter_store.intent import Intent
from adapter_store.kinds import named_by, set_aside, subject_of
from adapter_store.meter import MeteredStore
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind
from adapter_store.settle import settle
from adapter_store.shelf import Shelf
from adapter_store.signing import Signer, Verifier
from adapter_store.slot import Slot
from adapter_store.upload import (
    UPLOAD_THREADS,
    Uploader,
    UploadProgress,
    condemned_keys,
    holds,
    put_once,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often a change tries."""

    publish_s: float = 900.0
    """From the call to the last try to commit."""
    settle_s: float = 30.0
    """After that, to learn or to fill the slot."""
    attempts: int = 5
    parallel: int = UPLOAD_THREADS
    """Chunks on their way at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a publisher works with."""

    store: ObjectStore
    lock: PublishLock
    announcer: Announcer
    signer: Signer | None
    verifier: Verifier | None
    actor: str
    warn: Callable[[str], None]
    limits: Limits
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    new_txid: Callable[[], str]
    now: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A commit that stands, and what it cost."""

    tenant: str
    adapter: str
    gen: int
    kind: RecordKind
    label: str
    """Of what is staged after a staging, else of what is active; empty after a deletion."""
    vdig: str
    txid: str
    attempt: int
    unchanged: bool
    """The log said this already; nothing was written."""
    bytes_sent: int
    bytes_reused: int
    requests: int
    record: Record
    """All of it, as it is in the log."""


class Run:
    """One change to one adapter."""

    def __init__(
        self,
        tools: Tools,
        tenant: str,
        adapter: str,
        *,
        expect_gen: int | None,
        progress: UploadProgress,
    ) -> None:
        self._tools = tools
        self._tenant = layout.check_id("tenant", tenant)
        self._adapter = layout.check_id("adapter", adapter)
        self._expect_gen = expect_gen
        self._progress = progress
        self._store = MeteredStore(tools.store)
        self._reader = Reader(self._store, verifier=tools.verifier)
        self._fencing = Fencing(tools.lock, tenant, adapter, warn=tools.warn)
        self._txid = tools.new_txid()
        self._deadline = tools.clock() + tools.limits.publish_s
        self._intents: list[str] = []
        self._bytes_sent = 0
        self.shelf = Shelf(self._store, self._reader)

    def commit(self, choose: Callable[[Record | None], Change], *, rebase: bool) -> Published:
        """P1 to P9. `choose` names the change once, given the first head."""
        head = self._head()
        change = choose(head)
        done = self._already_there(head, change)
        if done is not None:
            return done
        try:
            self._fencing.take(head.fence if head else 0)
            done = self._until_decided(change, rebase=rebase, first=head)
        except OutcomeUnknown:
            # The intents stay: they keep the chunks until the slot is decided.
            raise
        except StoreError:
            self._clean()
            raise
        else:
            self._clean()
            return replace(done, requests=self._store.requests)
        finally:
            self._fencing.release()

    def change_log(self, choose: Callable[[Record], Change], *, rebase: bool) -> Published:
        """`commit` for what only an adapter with a log can do. Raises NotFound without one."""

        def of_existing(head: Record | None) -> Change:
            if head is None:
                raise NotFound(f"there is no adapter {self._adapter!r}", hint="publish it first")
            return choose(head)

        return self.commit(of_existing, rebase=rebase)

    def settle(self, txid: str) -> Published:
        """What became of an earlier run. Raises Conflict and OutcomeUnknown."""
        try:
            found = settle(
                self._store,
                self._reader,
                self._slot(),
                tenant=self._tenant,
                adapter=self._adapter,
                txid=txid,
                fence_author=lambda: self._author(self._tools.new_txid(), 1),
                deadline=self._tools.clock() + self._tools.limits.settle_s,
            )
        except (StoreUnavailable, StoreRefused) as error:
            raise OutcomeUnknown(
                f"nobody can tell yet whether the transaction landed: {error}",
                txid=txid,
                hint="settle it again when the store answers",
            ) from error
        if found is None:
            raise Conflict(f"transaction {txid} did not land and never will", hint="publish again")
        return self._published(found, found.kind, unchanged=False)

    def _until_decided(self, change: Change, *, rebase: bool, first: Record | None) -> Published:
        for attempt in range(1, self._tools.limits.attempts + 1):
            head = self._head()
            if not rebase and not state_of(head).says_as(state_of(first)):
                raise Conflict(
                    f"another publisher changed what {self._adapter} serves",
                    hint="look at what was published, then publish again",
                )
            done = self._already_there(head, change) or self._attempt(head, change, attempt)
            if done is not None:
                return done
        raise Conflict(
            f"lost the race for {self._adapter} {self._tools.limits.attempts} times",
            hint="publish again",
        )

    def _head(self) -> Record | None:
        try:
            return self._reader.head(self._tenant, self._adapter)
        except NotFound:
            return None

    def _already_there(self, head: Record | None, change: Change) -> Published | None:
        """Check the caller's terms against the head; a result when there is nothing to do."""
        self._check_terms(head, change)
        if head is None or not change.on(head).says_as(state_of(head)):
            return None
        signer, verifier = self._tools.signer, self._tools.verifier
        if signer is not None and verifier is None and not signer.has_signed(head):
            # The log says the same, but not so that anybody has to believe it.
            return None
        named = {content.vdig for content in change.contents}
        there = [version for version in head.contents() if version.vdig in named]
        labels = {version.label for version in there}
        for content in change.contents:
            if content.label and content.label not in labels and not head.indexed(content.label):
                return None
        if not all(holds(self._store, chunk.key, chunk) for chunk in chunks_of(there)):
            self._tools.warn(f"generation {head.gen} lost bytes in the store; they are sent again")
            return None
        return self._published(head, change.kind, unchanged=True)

    def _check_terms(self, head: Record | None, change: Change) -> None:
        gen = head.gen if head else 0
        if self._expect_gen is not None and self._expect_gen != gen:
            raise Conflict(
                f"{self._adapter} is at generation {gen}, not {self._expect_gen}",
                hint="look at what was published, then publish again",
            )
        for content in change.contents:
            known = head.indexed(content.label) if head and content.label else None
            if known is not None and known.vdig != content.vdig:
                raise Conflict(
                    f"label {content.label!r} names other content since generation {known.gen}",
                    hint="choose another label; a label never changes its meaning",
                )

    def _attempt(self, head: Record | None, change: Change, attempt: int) -> Published | None:
        """P3 to P8 for the slot after `head`; None when another took it and we may rebase."""
        floor = head.fence if head else 0
        self._fencing.raise_above(floor)
        self._announce_intent(head, change.on(head), attempt)
        ours = self._signed(
            next_record(
                head,
                self._place(change, attempt),
                self._author(self._txid, attempt),
                tenant=self._tenant,
                adapter=self._adapter,
                fence=self._fencing.fence_over(floor),
            ),
            change,
        )
        self._fencing.ensure()
        holder = self._take_slot(head, ours)
        if holder.txid == self._txid:
            self._announce(ours.gen)
            ended = set_aside(head, ours)
            if ended:
                self._tools.warn(ended)
            return self._published(ours, change.kind, unchanged=False)
        if holder.fence > ours.fence:
            raise Conflict(
                f"a publisher with a newer lock committed generation {holder.gen} first",
                hint="look at what it published, then publish again",
            )
        return None

    def _announce_intent(self, head: Record | None, state: State, attempt: int) -> None:
        """P3."""
        digests = {chunk.sha256 for chunk in chunks_of(state.contents())}
        intent = Intent(self._adapter, (head.gen if head else 0) + 1, tuple(sorted(digests)))
        key = layout.intent_key(self._tenant, self._txid, attempt)
        self._fencing.ensure()
        self._intents.append(key)
        put_once(self._store, key, intent.encode(), sleep=self._tools.sleep)

    def _place(self, change: Change, attempt: int) -> Change:
        """P4 to P6."""
        sources = {
            chunk.sha256: content.read
            for content in change.contents
            for file in content.files
            for chunk in file.chunks
        }
        uploader = Uploader(
            self._store,
            tenant=self._tenant,
            txid=self._txid,
            attempt=attempt,
            condemned=condemned_keys(self._store, self._tenant),
            read=lambda chunk: sources[chunk.sha256](chunk),
            before_write=self._fencing.ensure,
            sleep=self._tools.sleep,
            progress=self._progress,
            parallel=self._tools.limits.parallel,
        )
        files = tuple(file for content in change.contents for file in content.files)
        placed = uploader.place(files)
        self._bytes_sent += placed.bytes_sent
        return change.placed(placed.files)

    def _signed(self, record: Record, change: Change) -> Record:
        if self._tools.signer is None:
            return record
        vouched = frozenset(content.vdig for content in change.contents if content.in_hand)
        return self._tools.signer.sign(record, vouched=vouched)

    def _take_slot(self, head: Record | None, ours: Record) -> Record:
        """P7. The record that holds the slot; raises when it is the fence that gives ours up."""

        called_off = self._author(self._tools.new_txid(), 1)

        def fence() -> Record:
            return fence_record(head, called_off, tenant=self._tenant, adapter=self._adapter)

        holder = self._slot().commit(
            ours, fence=fence, deadline=self._deadline, settle_s=self._tools.limits.settle_s
        )
        if holder.txid == called_off.txid:
            raise StoreUnavailable(
                "the store did not confirm the commit in time; it was called off for good",
                hint="publish again",
            )
        return holder

    def _slot(self) -> Slot:
        return Slot(self._store, clock=self._tools.clock, sleep=self._tools.sleep)

    def _announce(self, gen: int) -> None:
        """P8."""
        try:
            self._tools.announcer.announce(self._tenant, self._adapter, gen)
        except Exception as error:
            self._tools.warn(f"nodes were not told: {error}")

    def _author(self, txid: str, attempt: int) -> Author:
        return Author(txid, attempt, self._tools.actor, self._tools.now())

    def _clean(self) -> None:
        """Remove intents that can no longer land. Never raises: a collector does it otherwise."""
        for key in self._intents:
            try:
                self._store.delete(key)
            except StoreError as error:
                self._tools.warn(f"an intent stays behind for the collector: {error}")
                return

    def _published(self, record: Record, asked: RecordKind, *, unchanged: bool) -> Published:
        subject = subject_of(record, asked)
        chunks = {chunk.sha256: chunk.length for chunk in chunks_of(named_by(record, asked))}
        return Published(
            tenant=self._tenant,
            adapter=self._adapter,
            gen=record.gen,
            kind=record.kind,
            label=subject.label if subject else "",
            vdig=subject.vdig if subject else "",
            txid=record.txid,
            attempt=record.attempt,
            unchanged=unchanged,
            bytes_sent=self._bytes_sent,
            bytes_reused=max(0, sum(chunks.values()) - self._bytes_sent),
            requests=self._store.requests,
            record=record,
        )

"""The protocol: how content becomes the next record of an adapter's log, once or not at all.

    P1 head --> P2 lock --> P3 intent --> P4 plans --> P5 chunks --> P6 read back --> P7 commit
     ^                                                                                   |
     | rebase: another's record, its fence not above ours                                |
     +-----------------------------------------------------------------------------------+
              +--------------+-----------------------+------------------------+----------+
              v              v                       v                        v
           LANDED         CONFLICT                FAILED                   UNKNOWN
        P8 announce,   another's record,     a fence record fills    neither the slot nor a
        clean, P9      fenced out, or the    the slot: ours can      fence could be had: ask
                       log moved             never land              settle.py later

P0  the caller validated the content with the checks a node runs; the transaction id is random
P1  find the current record N and verify what links it to what is known
P2  lease on the adapter, its fence above N's; without Redis go on with N's fence + 1
P3  write the intent: this attempt can land in slot N+1 and nowhere else
P4  read the collection plans: what they name may not be reused
P5  per chunk: reuse a key that holds exactly these bytes, else send it under a new key
P6  read back the checksum of every chunk sent
P7  one conditional PUT of log/N+1 (slot.py): a timeout is not a failure, the slot is read
P8  hint to the nodes, intent away, lock away: best effort, the commit stands without them
P9  report

A crash before P7 leaves the old version serving whole; after P7 the new one serves whole. What a
crash leaves behind (an intent, chunks) is garbage that a collector can tell from content.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from adapter_store import layout
from adapter_store.coordination import Announcer, NoAnnouncer, NoLock, PublishLock
from adapter_store.draft import (
    Author,
    Content,
    fence_record,
    local_content,
    next_record,
    older_content,
    served,
)
from adapter_store.errors import (
    Conflict,
    NotFound,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
)
from adapter_store.fencing import Fencing
from adapter_store.intent import Intent
from adapter_store.meter import MeteredStore
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind
from adapter_store.settle import settle
from adapter_store.signing import Signer, Verifier
from adapter_store.slot import Slot
from adapter_store.upload import (
    UPLOAD_THREADS,
    NoProgress,
    Uploader,
    UploadProgress,
    condemned_keys,
    holds,
    put_once,
)
from adapter_store.validate import LocalAdapter


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often a publish tries."""

    publish_s: float = 900.0
    """From the call to the last try to commit."""
    settle_s: float = 30.0
    """After that, to learn or to fill the slot."""
    attempts: int = 5
    parallel: int = UPLOAD_THREADS
    """Chunks on their way at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A commit that stands, and what it cost."""

    tenant: str
    adapter: str
    gen: int
    kind: RecordKind
    label: str
    vdig: str
    txid: str
    attempt: int
    unchanged: bool
    """The adapter served this content already; nothing was written."""
    bytes_sent: int
    bytes_reused: int
    requests: int


class Publisher:
    """Publishes to one store; calls may run at the same time."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        lock: PublishLock | None = None,
        announcer: Announcer | None = None,
        signer: Signer | None = None,
        verifier: Verifier | None = None,
        actor: str,
        warn: Callable[[str], None],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        new_txid: Callable[[], str] = lambda: secrets.token_hex(16),
        now: Callable[[], str] = lambda: datetime.now(UTC).isoformat(timespec="seconds"),
    ) -> None:
        self.store = store
        self.lock = lock or NoLock()
        self.announcer = announcer or NoAnnouncer()
        self.signer = signer
        self.verifier = verifier
        self.actor = actor
        self.warn = warn
        self.limits = limits or Limits()
        self.clock = clock
        self.sleep = sleep
        self.new_txid = new_txid
        self.now = now

    def publish(
        self,
        tenant: str,
        adapter: str,
        local: LocalAdapter,
        *,
        label: str | None = None,
        expect_gen: int | None = None,
        rebase: bool = True,
        progress: UploadProgress | None = None,
    ) -> Published:
        """Make `local` what the adapter serves.

        `expect_gen` is the generation the caller last saw, 0 for none. With `rebase` a commit
        that another publisher overtook is tried again on top of theirs.

        Raises Conflict, StoreUnavailable, StoreRefused, LockLost, IntegrityError, InvalidName:
        nothing of ours is served and nothing will be. Raises OutcomeUnknown when nobody knows.
        """
        content = local_content(local, label)
        run = _Run(self, tenant, adapter, expect_gen=expect_gen, progress=progress)
        return run.commit(lambda head: content, rebase=rebase)

    def rollback(
        self, tenant: str, adapter: str, *, to: str | None = None, expect_gen: int | None = None
    ) -> Published:
        """Serve older content again, under a new and higher generation.

        `to` is a version's label or `sha256:<digest>`; None means the content served before the
        current one, and then nobody else may change what is served meanwhile.

        Raises NotFound when there is no such version or its bytes are no longer kept, and as
        `publish`.
        """
        run = _Run(self, tenant, adapter, expect_gen=expect_gen, progress=None)
        return run.commit(lambda head: run.older_content(head, to), rebase=to is not None)

    def settle(self, tenant: str, adapter: str, txid: str) -> Published:
        """Say for good what became of a publish that ended in OutcomeUnknown.

        Raises Conflict when it did not land and never will, StoreUnavailable when the store still
        cannot tell.
        """
        return _Run(self, tenant, adapter, expect_gen=None, progress=None).settle(txid)


class _Run:
    """One publish or rollback on its way."""

    def __init__(
        self,
        publisher: Publisher,
        tenant: str,
        adapter: str,
        *,
        expect_gen: int | None,
        progress: UploadProgress | None,
    ) -> None:
        self._env = publisher
        self._tenant = layout.check_id("tenant", tenant)
        self._adapter = layout.check_id("adapter", adapter)
        self._expect_gen = expect_gen
        self._progress = progress or NoProgress()
        self._store = MeteredStore(publisher.store)
        self._reader = Reader(self._store, verifier=publisher.verifier)
        self._fencing = Fencing(publisher.lock, tenant, adapter, warn=publisher.warn)
        self._txid = publisher.new_txid()
        self._deadline = publisher.clock() + publisher.limits.publish_s
        self._intents: list[str] = []
        self._bytes_sent = 0

    def commit(self, choose: Callable[[Record | None], Content], *, rebase: bool) -> Published:
        """P1 to P9. `choose` names the content once, given the first head."""
        head = self._head()
        content = choose(head)
        done = self._already_there(head, content)
        if done is not None:
            return done
        try:
            self._fencing.take(head.fence if head else 0)
            done = self._until_decided(content, rebase=rebase, first=head)
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

    def older_content(self, head: Record | None, to: str | None) -> Content:
        if head is None:
            raise NotFound(f"there is no adapter {self._adapter!r}", hint="publish it first")
        return older_content(self._store, self._reader, head, to)

    def settle(self, txid: str) -> Published:
        found = settle(
            self._store,
            self._reader,
            Slot(self._store, clock=self._env.clock, sleep=self._env.sleep),
            tenant=self._tenant,
            adapter=self._adapter,
            txid=txid,
            fence_author=lambda: self._author(self._env.new_txid(), 1),
            deadline=self._env.clock() + self._env.limits.settle_s,
        )
        if found is None:
            raise Conflict(f"transaction {txid} did not land and never will", hint="publish again")
        return self._published(found, unchanged=False)

    def _until_decided(self, content: Content, *, rebase: bool, first: Record | None) -> Published:
        for attempt in range(1, self._env.limits.attempts + 1):
            head = self._head()
            if not rebase and served(head) != served(first):
                raise Conflict(
                    f"another publisher changed what {self._adapter} serves",
                    hint="look at what was published, then publish again",
                )
            done = self._already_there(head, content) or self._attempt(head, content, attempt)
            if done is not None:
                return done
        raise Conflict(
            f"lost the race for {self._adapter} {self._env.limits.attempts} times",
            hint="publish again",
        )

    def _head(self) -> Record | None:
        try:
            return self._reader.head(self._tenant, self._adapter)
        except NotFound:
            return None

    def _already_there(self, head: Record | None, content: Content) -> Published | None:
        """Check the caller's terms against the head; a result when there is nothing to do."""
        gen = head.gen if head else 0
        if self._expect_gen is not None and self._expect_gen != gen:
            raise Conflict(
                f"{self._adapter} is at generation {gen}, not {self._expect_gen}",
                hint="look at what was published, then publish again",
            )
        known = head.indexed(content.label) if head and content.label else None
        if known is not None and known.vdig != content.vdig:
            raise Conflict(
                f"label {content.label!r} names other content since generation {known.gen}",
                hint="choose another label; a label never changes its meaning",
            )
        active = head.active if head else None
        if head is None or active is None or active.vdig != content.vdig:
            return None
        if content.label not in (None, active.label) and known is None:
            return None
        if self._env.signer is not None and not self._env.signer.has_signed(head):
            return None
        chunks = (chunk for file in active.files for chunk in file.chunks)
        if not all(holds(self._store, chunk.key, chunk) for chunk in chunks):
            self._env.warn(f"generation {head.gen} lost bytes in the store; they are sent again")
            return None
        return self._published(head, unchanged=True)

    def _attempt(self, head: Record | None, content: Content, attempt: int) -> Published | None:
        """P3 to P8 for the slot after `head`; None when another took it and we may rebase."""
        self._fencing.raise_above(head.fence if head else 0)
        self._announce_intent(head, content, attempt)
        uploader = Uploader(
            self._store,
            tenant=self._tenant,
            txid=self._txid,
            attempt=attempt,
            condemned=condemned_keys(self._store, self._tenant),
            read=content.read,
            before_write=self._fencing.ensure,
            sleep=self._env.sleep,
            progress=self._progress,
            parallel=self._env.limits.parallel,
        )
        placed = uploader.place(content.files)
        self._bytes_sent += placed.bytes_sent
        ours = next_record(
            head,
            replace(content, files=placed.files),
            self._author(self._txid, attempt),
            tenant=self._tenant,
            adapter=self._adapter,
            fence=self._fencing.fence_over(head.fence if head else 0),
        )
        if self._env.signer is not None:
            vouched = frozenset({content.vdig} if content.in_hand else ())
            ours = self._env.signer.sign(ours, vouched=vouched)
        self._fencing.ensure()
        holder = self._take_slot(head, ours)
        if holder.txid == self._txid:
            self._announce(ours.gen)
            return self._published(ours, unchanged=False)
        if holder.fence > ours.fence:
            raise Conflict(
                f"a publisher with a newer lock committed generation {holder.gen} first",
                hint="look at what it published, then publish again",
            )
        return None

    def _announce_intent(self, head: Record | None, content: Content, attempt: int) -> None:
        digests = {chunk.sha256 for file in content.files for chunk in file.chunks}
        intent = Intent(self._adapter, (head.gen if head else 0) + 1, tuple(sorted(digests)))
        key = layout.intent_key(self._tenant, self._txid, attempt)
        self._fencing.ensure()
        self._intents.append(key)
        put_once(self._store, key, intent.encode(), sleep=self._env.sleep)

    def _take_slot(self, head: Record | None, ours: Record) -> Record:
        """P7. The record that holds the slot; raises when it is the fence that gives ours up."""

        called_off = self._author(self._env.new_txid(), 1)

        def fence() -> Record:
            return fence_record(head, called_off, tenant=self._tenant, adapter=self._adapter)

        slot = Slot(self._store, clock=self._env.clock, sleep=self._env.sleep)
        holder = slot.commit(
            ours, fence=fence, deadline=self._deadline, settle_s=self._env.limits.settle_s
        )
        if holder.txid == called_off.txid:
            raise StoreUnavailable(
                "the store did not confirm the commit in time; it was called off for good",
                hint="publish again",
            )
        return holder

    def _announce(self, gen: int) -> None:
        try:
            self._env.announcer.announce(self._tenant, self._adapter, gen)
        except Exception as error:
            self._env.warn(f"nodes were not told: {error}")

    def _author(self, txid: str, attempt: int) -> Author:
        return Author(txid, attempt, self._env.actor, self._env.now())

    def _clean(self) -> None:
        """Remove intents that can no longer land. Never raises: a collector does it otherwise."""
        for key in self._intents:
            try:
                self._store.delete(key)
            except StoreError as error:
                self._env.warn(f"an intent stays behind for the collector: {error}")
                return

    def _published(self, record: Record, *, unchanged: bool) -> Published:
        version = record.active
        assert version is not None
        chunks = {c.sha256: c.length for file in version.files for c in file.chunks}
        return Published(
            tenant=self._tenant,
            adapter=self._adapter,
            gen=record.gen,
            kind=record.kind,
            label=version.label,
            vdig=version.vdig,
            txid=record.txid,
            attempt=record.attempt,
            unchanged=unchanged,
            bytes_sent=self._bytes_sent,
            bytes_reused=max(0, sum(chunks.values()) - self._bytes_sent),
            requests=self._store.requests,
        )

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

Every kind of change goes this one way: kinds.py says what the record of each says, shelf.py finds
content that the log names already, attempt.py walks the steps.

A crash before P7 leaves the old version serving whole; after P7 the new one serves whole. What a
crash leaves behind (an intent, chunks) is garbage that a collector can tell from content.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from adapter_store import kinds
from adapter_store.attempt import Limits, Published, Run, Tools
from adapter_store.coordination import Announcer, NoAnnouncer, NoLock, PublishLock
from adapter_store.draft import local_content
from adapter_store.objects import ObjectStore
from adapter_store.shelf import check_weights
from adapter_store.signing import Signer, Verifier
from adapter_store.upload import NoProgress, UploadProgress
from adapter_store.validate import LocalAdapter

__all__ = ["Limits", "Published", "Publisher"]


class Publisher:
    """Changes what the adapters of one store serve; calls may run at the same time.

    Every change takes `expect_gen`, the generation the caller last saw (0 for none), and raises
    Conflict when the log has moved since. Where others commit at the same time, `publish`, `stage`
    and whatever names its version go on top of them (rebase), at most `Limits.attempts` times;
    the rest stop with Conflict, because what the caller looked at is no longer so. A fence record
    in between stops nobody.

    Each change raises Conflict, StoreUnavailable, StoreRefused, LockLost, IntegrityError,
    InvalidName: nothing of it is in the log and nothing will be. It raises OutcomeUnknown when
    nobody knows. A change the log shows already writes nothing and is reported as unchanged.
    """

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
        self._tools = Tools(
            store=store,
            lock=lock or NoLock(),
            announcer=announcer or NoAnnouncer(),
            signer=signer,
            verifier=verifier,
            actor=actor,
            warn=warn,
            limits=limits or Limits(),
            clock=clock,
            sleep=sleep,
            new_txid=new_txid,
            now=now,
        )

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
        """Make `local` what the adapter serves, to everybody; revives a deleted adapter.

        Ends staging and split, whoever began them: the caller is warned when that sets another
        version aside. Without `rebase` a commit that another publisher overtook is a Conflict.
        """
        content = local_content(local, label)
        run = self._run(tenant, adapter, expect_gen, progress)
        return run.commit(lambda head: kinds.publish(content), rebase=rebase)

    def stage(
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
        """Put `local` in the log beside what is served, in place of what was staged before.

        What is served stays as it is. The staged version can be fetched by its label or digest.
        """
        content = local_content(local, label)
        run = self._run(tenant, adapter, expect_gen, progress)
        return run.commit(lambda head: kinds.stage(content), rebase=rebase)

    def activate(
        self,
        tenant: str,
        adapter: str,
        *,
        label: str | None = None,
        expect_gen: int | None = None,
    ) -> Published:
        """Serve the staged version, or the one `label` names, to everybody; ends staging and split.

        `label` is a version's label or `sha256:<digest>`, of anything in the log: an arm of a
        split is promoted this way. To activate twice is to activate once. Raises NotFound when
        nothing is staged or there is no such version or its bytes are no longer kept.
        """
        run = self._run(tenant, adapter, expect_gen)
        return run.change_log(
            lambda head: kinds.activate(
                run.shelf.staged(head) if label is None else run.shelf.named(head, label)
            ),
            rebase=label is not None,
        )

    def rollback(
        self, tenant: str, adapter: str, *, to: str | None = None, expect_gen: int | None = None
    ) -> Published:
        """Serve older content again, under a new and higher generation; ends staging and split.

        `to` is a version's label or `sha256:<digest>`; None means what was served before: during
        a split the active version, to everybody, otherwise the active version before this one.
        Raises NotFound when there is no such version or its bytes are no longer kept.
        """
        run = self._run(tenant, adapter, expect_gen)
        return run.change_log(
            lambda head: kinds.rollback(
                run.shelf.before(head) if to is None else run.shelf.named(head, to)
            ),
            rebase=to is not None,
        )

    def split(
        self,
        tenant: str,
        adapter: str,
        weights: Mapping[str, int],
        *,
        expect_gen: int | None = None,
    ) -> Published:
        """Serve several versions of the log side by side, each to its share of the callers.

        `weights` gives 2 to 8 labels or `sha256:<digest>`s their parts of the traffic. Which
        version a caller gets is decided by its affinity key (Reader.resolve) and stays the same
        while the weights allow it; callers without a key get the active version, which a split
        leaves as it is. Whatever becomes active next ends the split: `activate` of an arm
        promotes it, `rollback` takes the split back.

        Raises InvalidSplit, and NotFound when a version or its bytes are not kept or the adapter
        serves nothing.
        """
        check_weights(weights)
        run = self._run(tenant, adapter, expect_gen)
        return run.change_log(
            lambda head: kinds.split(run.shelf.arms(head, weights), tuple(weights.values())),
            rebase=False,
        )

    def delete(self, tenant: str, adapter: str, *, expect_gen: int | None = None) -> Published:
        """Serve nothing any more; new requests find no such adapter.

        The log and its labels stay: `publish`, or `rollback` while the bytes are kept, revive the
        adapter under the next generation. Raises NotFound for an adapter without a log.
        """
        run = self._run(tenant, adapter, expect_gen)
        return run.change_log(lambda head: kinds.tombstone(), rebase=False)

    def settle(self, tenant: str, adapter: str, txid: str) -> Published:
        """Say for good what became of a change of any kind that ended in OutcomeUnknown.

        Raises Conflict when it did not land and never will, OutcomeUnknown while the store cannot
        tell.
        """
        return self._run(tenant, adapter, None).settle(txid)

    def _run(
        self,
        tenant: str,
        adapter: str,
        expect_gen: int | None,
        progress: UploadProgress | None = None,
    ) -> Run:
        return Run(
            self._tools,
            tenant,
            adapter,
            expect_gen=expect_gen,
            progress=progress or NoProgress(),
        )

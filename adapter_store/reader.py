"""What is current, which version a reference means, and its bytes, all verified.

The read rule: from generation N, which this reader knows, the next record is at N+1 or N is
current. One GET answers, no listing. A reader that knows nothing lists the log, newest first,
and starts there. What a reader knows only rises, and each step up is checked against the hash of
the record below it, until it forgets an adapter for others that were asked for later. With a
verifier only what a trusted key signed counts (log.py).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adapter_store import layout
from adapter_store.cache import ContentCache
from adapter_store.canary import choose_arm
from adapter_store.errors import Behind, IntegrityError, NotFound, Untrusted
from adapter_store.fetch import FETCH_THREADS, Fetcher
from adapter_store.layout import AdapterRef
from adapter_store.log import Known, Log, Seen, check_plan
from adapter_store.objects import ObjectStore
from adapter_store.record import Record, RecordKind, VersionRef
from adapter_store.signing import Verifier

_REMEMBERED_RECORDS = 1024
REMEMBERED_ADAPTERS = 16_384
"""More than a node serves or watches at once: what it forgets is found anew, as from the start."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """One immutable version, and the record that says it is served."""

    tenant: str
    adapter: str
    gen: int
    kind: RecordKind
    version: VersionRef


@dataclass(frozen=True, slots=True)
class AdaptersPage:
    """Names of adapters, in the store's order."""

    names: tuple[str, ...]
    next_token: str | None
    """Pass as `token` for the next page; None when this is the last."""


class Reader:
    """Reads logs and content; safe for several threads, and writes nothing to the store."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        cache: ContentCache | None = None,
        verifier: Verifier | None = None,
        on_refused: Callable[[Untrusted], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        parallel: int = FETCH_THREADS,
        remembered: int = REMEMBERED_ADAPTERS,
    ) -> None:
        """`fetch` asks for `parallel` chunks at once; 1 needs no thread but the caller's.

        The newest records of `remembered` adapters are known, those asked for last.

        With a verifier only what it trusts is believed, and `on_refused` is told once of each
        record that is not.
        """
        self._store = store
        self._verifier = verifier
        self._on_refused = on_refused
        self._clock = clock
        self._fetcher = Fetcher(store, cache=cache, parallel=parallel)
        self._log = Log(store, verifier, refused=self._note_refused)
        self._lock = threading.Lock()
        self._remembered = remembered
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._checked: dict[tuple[str, str], float] = {}
        self._alarmed: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._old: OrderedDict[tuple[str, str, int], Record] = OrderedDict()

    def head(self, tenant: str, adapter: str) -> Record:
        """The current record, asked of the store now.

        Raises NotFound for an adapter without a log, StoreUnavailable, StoreRefused, IntegrityError
        when a record breaks the chain, Untrusted when the newest one is not to be believed; what
        was known before stays known.
        """
        known = self._refreshed(tenant, adapter)
        if known.refused is not None:
            raise known.refused
        return known.record

    def current(self, tenant: str, adapter: str) -> Record:
        """The newest record that counts, asked of the store now.

        It is `head`, or with a verifier the last trusted record below it. Raises as `head`, and
        Untrusted only when no record counts.
        """
        return self._refreshed(tenant, adapter).record

    def refused(self, tenant: str, adapter: str) -> Untrusted | None:
        """Why the newest slot seen does not count; None when it does. Asks nobody."""
        known = self._recall(tenant, adapter)
        return known.refused if known else None

    def known(self, tenant: str, adapter: str) -> Record | None:
        """The newest record seen so far that counts; asks nobody."""
        known = self._recall(tenant, adapter)
        return known.record if known else None

    def known_gen(self, tenant: str, adapter: str) -> int:
        """The highest generation seen so far, 0 for none; asks nobody."""
        known = self._recall(tenant, adapter)
        return known.record.gen if known else 0

    def resolve(
        self,
        ref: AdapterRef,
        *,
        affinity: str = "",
        refresh: bool = True,
        max_staleness: float = 0.0,
        min_generation: int = 0,
    ) -> Resolved:
        """The version that `ref` means, by the newest record that counts.

        During a split, `affinity` chooses the arm for a `ref` that pins none: the same key gets
        the same arm while the weights allow it (canary.py). Without a key it is the active version.

        With `refresh` the store is asked for news unless it was asked less than `max_staleness`
        seconds ago; without, what is known answers, and only an adapter never seen before costs
        requests. Whatever is known below `min_generation` is not an answer: the store is asked. A
        pinned version costs at most 3 requests cold.

        Raises NotFound for an unknown adapter or version and after a tombstone, Behind when the
        log does not reach `min_generation`, and as `current`.
        """
        known = self._recall(ref.tenant, ref.adapter)
        cold = known is None
        walked = False
        if known is None:
            known = self._first(ref.tenant, ref.adapter)
        # A listing is current by itself, so a pinned version found under it needs no walk.
        stale = refresh and not (cold and ref.pinned) and self._older_than(ref, max_staleness)
        if stale or known.record.gen < min_generation:
            known, walked = self._walk(known), True
        if known.record.gen < min_generation:
            raise _behind(known, min_generation)
        found = self._select(known.record, ref, affinity)
        if found is None and cold and ref.pinned and not walked:
            known = self._walk(known)
            found = self._select(known.record, ref, affinity)
        if found is None:
            raise _no_version(known.record, ref)
        return found

    def record(self, tenant: str, adapter: str, gen: int) -> Record:
        """The record of one generation, from memory when it was read lately. Raises NotFound."""
        known = self._recall(tenant, adapter)
        if known is not None and known.record.gen == gen:
            return known.record
        with self._lock:
            if (tenant, adapter, gen) in self._old:
                self._old.move_to_end((tenant, adapter, gen))
                return self._old[tenant, adapter, gen]
        record = _record(self._log.read(tenant, adapter, gen))
        with self._lock:
            self._old[tenant, adapter, gen] = record
            if len(self._old) > _REMEMBERED_RECORDS:
                self._old.popitem(last=False)
        return record

    def find(self, record: Record, ref: AdapterRef) -> Resolved | None:
        """The version that `ref` pins, in `record` or where its index points; one GET at most."""
        here = _pinned(record, ref)
        if here is not None:
            return _resolved(record, here)
        for entry in reversed(record.versions):
            if entry.label == ref.label if ref.label else entry.vdig == ref.vdig:
                older = self.record(ref.tenant, ref.adapter, entry.gen)
                version = _pinned(older, AdapterRef(ref.tenant, ref.adapter, label=entry.label))
                if version is None or version.vdig != entry.vdig:
                    raise IntegrityError(f"generation {entry.gen} lacks version {entry.label!r}")
                if self._verifier is not None:
                    self._verifier.check(older)
                return _resolved(older, version)
        return None

    def history(self, tenant: str, adapter: str) -> Iterator[Record]:
        """Every record, newest first; with a verifier, every signed one that it trusts.

        Raises IntegrityError where the chain breaks, and as `current`.
        """
        known = self._refreshed(tenant, adapter)
        if self._verifier is None or known.record.kind is not RecordKind.FENCE:
            yield known.record
        gen, parent = known.record.gen, known.record.parent
        # Below a slot that holds no record at all nothing is linked, and signatures alone count.
        linked = True
        while gen > 1:
            gen -= 1
            try:
                seen = self._log.read(tenant, adapter, gen)
            except NotFound as error:
                raise IntegrityError(f"generation {gen} of {adapter} is gone") from error
            if linked and seen.digest != parent:
                raise IntegrityError(f"generation {gen + 1} of {adapter} has another parent")
            if self._verifier is not None and seen.record is None:
                linked = False
                continue
            record, linked = _record(seen), True
            parent = record.parent
            if self._trusts(record):
                yield record

    def adapters(self, tenant: str) -> Iterator[str]:
        """The names of a tenant's adapters, in the store's order, page after page."""
        token: str | None = None
        while True:
            page = self.adapters_page(tenant, token=token)
            yield from page.names
            token = page.next_token
            if token is None:
                return

    def adapters_page(
        self, tenant: str, *, limit: int = 1000, token: str | None = None
    ) -> AdaptersPage:
        """Some names for one request: at most `limit`, from where the page with `token` ended."""
        prefix = layout.adapters_prefix(tenant)
        page = self._store.list(prefix, delimiter="/", limit=limit, token=token)
        names = (folder.removeprefix(prefix).removesuffix("/") for folder in page.folders)
        return AdaptersPage(tuple(names), page.next_token)

    def fetch(self, tenant: str, version: VersionRef, *, adapter: str = "") -> dict[str, bytes]:
        """Every file of a version by name, each byte covered by a checked sha256.

        A chunk that comes damaged is fetched once more. Raises IntegrityError when it stays
        damaged; when a chunk is gone, NotFound, or IntegrityError if `adapter` is given and
        still needs this very version. Raises StoreUnavailable and StoreRefused.
        """
        check_plan(tenant, version)
        try:
            return self._fetcher.fetch(tenant, version)
        except NotFound as error:
            raise self._gone(tenant, adapter, version) from error

    def _recall(self, tenant: str, adapter: str) -> Known | None:
        with self._lock:
            known = self._known.get((tenant, adapter))
            if known is not None:
                self._known.move_to_end((tenant, adapter))
            return known

    def _learn(self, found: Known) -> Known:
        """Remember `found` unless another thread already knows more; what is known now."""
        key = (found.record.tenant, found.record.adapter)
        with self._lock:
            known = self._known.get(key)
            if known is None or _extent(known) <= _extent(found):
                self._known[key] = known = found
            if len(self._known) > self._remembered:
                forgotten, _ = self._known.popitem(last=False)
                self._checked.pop(forgotten, None)
            return known

    def _refreshed(self, tenant: str, adapter: str) -> Known:
        known = self._recall(tenant, adapter) or self._first(tenant, adapter)
        return self._walk(known)

    def _first(self, tenant: str, adapter: str) -> Known:
        return self._learn(self._log.start(tenant, adapter))

    def _walk(self, known: Known) -> Known:
        """Up to the end of the log. Every step is remembered, should a later one fail."""
        name = (known.record.tenant, known.record.adapter)
        asked_at = self._clock()
        while True:
            try:
                found = self._log.climb(known)
            except Untrusted:
                # Only of what was known itself: whoever was trusted for it no longer is.
                with self._lock:
                    self._known.pop(name, None)
                    self._checked.pop(name, None)
                raise
            if found is known or self._verifier is not None:
                break
            known = self._learn(found)
        known = self._learn(found)
        with self._lock:
            if name in self._known:
                self._checked[name] = asked_at
        return known

    def _older_than(self, ref: AdapterRef, max_staleness: float) -> bool:
        with self._lock:
            checked = self._checked.get((ref.tenant, ref.adapter))
        return checked is None or self._clock() - checked > max_staleness

    def _note_refused(self, tenant: str, adapter: str, seen: Seen, error: Untrusted) -> None:
        with self._lock:
            key = (tenant, adapter, seen.digest)
            known = key in self._alarmed
            self._alarmed[key] = None
            if len(self._alarmed) > _REMEMBERED_RECORDS:
                self._alarmed.popitem(last=False)
        if not known and self._on_refused is not None:
            self._on_refused(error)

    def _trusts(self, record: Record) -> bool:
        if self._verifier is None:
            return True
        try:
            self._verifier.check(record)
        except Untrusted:
            return False
        return True

    def _select(self, record: Record, ref: AdapterRef, affinity: str) -> Resolved | None:
        version = record.active
        if version is None:
            # Of a deleted adapter nothing is left but what was staged since.
            version = _pinned(record, ref) if ref.pinned else None
        elif ref.pinned:
            return self.find(record, ref)
        elif record.split and affinity:
            version = choose_arm(record, affinity)
        return None if version is None else _resolved(record, version)

    def _gone(self, tenant: str, adapter: str, version: VersionRef) -> NotFound | IntegrityError:
        if adapter:
            current = self.head(tenant, adapter)
            if any(kept.files == version.files for kept in current.contents()):
                return IntegrityError(
                    f"{adapter} needs {version.label!r}, and a chunk of it is gone",
                    hint="publish this version again",
                )
        return NotFound(
            f"version {version.label!r} is no longer kept",
            hint="resolve again, or publish its content again",
        )


def _extent(known: Known) -> tuple[int, int]:
    """Of two findings the larger is the later one."""
    return known.epoch, known.record.gen


def _record(seen: Seen) -> Record:
    if seen.record is None:
        raise seen.fault or IntegrityError(f"generation {seen.gen} is no record")
    return seen.record


def _behind(known: Known, wanted: int) -> Behind:
    record = known.record
    message = f"{record.adapter} is at generation {record.gen}, below {wanted}"
    if known.refused is not None:
        message = f"{message}: {known.refused}"
    return Behind(message, hint="ask again shortly, or check the generation")


def _resolved(record: Record, version: VersionRef) -> Resolved:
    return Resolved(record.tenant, record.adapter, record.gen, record.kind, version)


def _pinned(record: Record, ref: AdapterRef) -> VersionRef | None:
    for version in record.contents():
        if version.label == ref.label if ref.label else version.vdig == ref.vdig:
            return version
    return None


def _no_version(record: Record, ref: AdapterRef) -> NotFound:
    if record.active is not None:
        return NotFound(
            f"there is no version {ref}", hint="list its versions; very old labels are forgotten"
        )
    if record.staged is not None:
        return NotFound(
            f"{ref.adapter} serves nothing yet, {record.staged.label!r} is staged",
            hint="activate the staged version",
        )
    if not record.versions:
        return NotFound(f"{ref.adapter} serves nothing", hint="publish a version of it first")
    return NotFound(
        f"{ref.adapter} was deleted, generation {record.gen} serves nothing",
        hint="publish it again, or roll back to a version of it",
    )

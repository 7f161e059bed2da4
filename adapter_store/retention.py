"""Which chunks of a tenant are needed, read in the one order in which the answer is safe.

A chunk is needed while it belongs to
- what an adapter serves now: the active, staged and split contents of its newest record, and with
  a verifier of its newest trusted one, whatever lies above that;
- a record among an adapter's newest `keep`, or younger than `younger_s` by the store's own clock;
- a pinned version, or an intent: these speak of digests, for they hold whatever the key is.

Once an adapter has served nothing for `younger_s` (a tombstone), its log keeps no chunk alive.

Intents are read before the log. A publisher that commits in between has deleted its intent, but
its record is then there to be read; the other way round its chunk would be seen in neither.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from adapter_store import layout
from adapter_store.draft import chunks_of
from adapter_store.errors import IntegrityError, InvalidName, InvalidSetting, NotFound, Untrusted
from adapter_store.intent import Plan, decode_intent, decode_pin, decode_plan
from adapter_store.log import Log
from adapter_store.objects import ObjectHead, ObjectStore, listed
from adapter_store.record import Record, decode_record
from adapter_store.signing import Verifier
from adapter_store.upload import put_once

DAY_S = 86_400.0
BLOCKED = "nothing is collected while this is so; see: adapter-store fsck"

_T = TypeVar("_T")
_Given = TypeVar("_Given")


@dataclass(frozen=True, slots=True)
class Retention:
    """What stays beside what is served. Raises InvalidSetting on a rule that makes no sense."""

    keep: int = 10
    """Newest records of each adapter, the current one included."""
    younger_s: float = 7 * DAY_S

    def __post_init__(self) -> None:
        if self.keep < 1 or self.younger_s < 0:
            raise InvalidSetting("retention keeps at least 1 record, and no negative time")


class StoreClock:
    """The store's time, asked at most once: ages are judged by the clock that stamped them."""

    def __init__(
        self,
        store: ObjectStore,
        tenant: str,
        *,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._new_id = new_id
        self._sleep = sleep
        self._lock = threading.Lock()
        self._now: float | None = None

    def now(self) -> float:
        """Writes and removes an empty plan. One that a crash leaves goes with the next collection.

        Raises StoreUnavailable, StoreRefused.
        """
        with self._lock:
            while self._now is None:
                key = layout.plan_key(self._tenant, self._new_id())
                put_once(self._store, key, Plan(()).encode(), sleep=self._sleep)
                # A collector that runs beside this one may have cleared it away already.
                with contextlib.suppress(NotFound):
                    self._now = self._store.head(key).modified
                self._store.delete(key)
            return self._now

    def older(self, modified: float, seconds: float) -> bool:
        """Whether what was stored at `modified` is at least so old; asks only if it matters."""
        return seconds <= 0 or self.now() - modified >= seconds


@dataclass(frozen=True, slots=True)
class Needs:
    """What may not be deleted."""

    keys: frozenset[str]
    digests: frozenset[str]

    def cover(self, key: str) -> bool:
        return key in self.keys or layout.parse_blob_key(key) in self.digests


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A stored record that is not read yet."""

    adapter: str
    gen: int
    key: str
    modified: float


class Roots:
    """Reads the needs of one tenant, as often as asked; no record is fetched twice."""

    def __init__(
        self,
        store: ObjectStore,
        tenant: str,
        retention: Retention,
        *,
        clock: StoreClock,
        parallel: int,
        verifier: Verifier | None = None,
    ) -> None:
        self._store = store
        self._log = Log(store, verifier, refused=lambda *_: None) if verifier else None
        self._tenant = tenant
        self._retention = retention
        self._clock = clock
        self._parallel = parallel
        self._chunks_in: dict[str, tuple[str, ...]] = {}

    def read(self) -> Needs:
        """Raises IntegrityError when something is damaged: what it needs would not be known."""
        announced = self._announced()
        pinned = self._pinned()
        logged = self._logged()
        return Needs(logged, announced | pinned)

    def _announced(self) -> frozenset[str]:
        intents = stored(self._store, layout.intents_prefix(self._tenant), decode_intent)
        return frozenset(digest for _, intent in intents for digest in intent.digests)

    def _pinned(self) -> frozenset[str]:
        pins = stored(self._store, layout.pins_prefix(self._tenant), decode_pin)
        return frozenset(digest for _, pin in pins for digest in pin.digests)

    def _logged(self) -> frozenset[str]:
        logs = (self._retained(log) for log in logs_of(self._store, self._tenant))
        needed = in_parallel(self._needed, logs, self._parallel)
        return frozenset(key for keys in needed for key in keys)

    def _retained(self, log: list[LogEntry]) -> list[LogEntry]:
        keep, younger_s = self._retention.keep, self._retention.younger_s
        young = (e for e in log[keep:] if not self._clock.older(e.modified, younger_s))
        return [*log[:keep], *young]

    def _needed(self, log: list[LogEntry]) -> list[str]:
        served, since = self._served(log[0])
        if not served and self._clock.older(since, self._retention.younger_s):
            return []
        return [*served, *(key for entry in log for key in self._kept(entry))]

    def _served(self, newest: LogEntry) -> tuple[tuple[str, ...], float]:
        """The chunks that nodes may be asked for, and since when it can be so at the latest."""
        if self._log is None:
            return self._chunks(newest), newest.modified
        try:
            record = self._log.start(self._tenant, newest.adapter).record
        except Untrusted:
            return (), newest.modified
        return _keys_of(record), newest.modified

    def _kept(self, entry: LogEntry) -> tuple[str, ...]:
        if self._log is None:
            return self._chunks(entry)
        try:
            return self._chunks(entry)
        except IntegrityError:
            # Whoever may write objects may leave such a one. It cannot be what is served.
            return ()

    def _chunks(self, entry: LogEntry) -> tuple[str, ...]:
        if entry.key not in self._chunks_in:
            record = read_record(self._store, self._tenant, entry)
            self._chunks_in[entry.key] = _keys_of(record)
        return self._chunks_in[entry.key]


def logs_of(
    store: ObjectStore,
    tenant: str,
    *,
    adapter: str = "",
    stray: Callable[[str], None] = lambda key: None,
) -> Iterator[list[LogEntry]]:
    """Every adapter's stored records (or one's), newest first; one listing of them all.

    Its order among adapters is the store's own. `stray` is told the keys that are no record's.
    """
    prefix = layout.adapters_prefix(tenant)

    def entries() -> Iterator[LogEntry]:
        for head in listed(store, layout.log_prefix(tenant, adapter) if adapter else prefix):
            entry = _log_entry(prefix, head)
            if entry is not None:
                yield entry
            else:
                stray(head.key)

    for _, log in groupby(entries(), key=lambda entry: entry.adapter):
        yield sorted(log, key=lambda entry: -entry.gen)


def read_record(store: ObjectStore, tenant: str, entry: LogEntry) -> Record:
    """Raises IntegrityError when it is damaged, gone or another's."""
    try:
        record = decode_record(store.get(entry.key))
    except NotFound as error:
        raise IntegrityError(f"{entry.key} was listed and is gone", hint=BLOCKED) from error
    except IntegrityError as error:
        raise IntegrityError(f"{entry.key}: {error}", hint=BLOCKED) from error
    if (record.tenant, record.adapter, record.gen) != (tenant, entry.adapter, entry.gen):
        raise IntegrityError(f"{entry.key} holds the record of another place", hint=BLOCKED)
    return record


def stored(
    store: ObjectStore, prefix: str, decode: Callable[[bytes], _T]
) -> Iterator[tuple[ObjectHead, _T]]:
    """Everything under `prefix`, decoded; what goes away meanwhile is passed over.

    Raises IntegrityError.
    """
    for head in listed(store, prefix):
        try:
            yield head, decode(store.get(head.key))
        except NotFound:
            continue
        except IntegrityError as error:
            raise IntegrityError(f"{head.key}: {error}", hint=BLOCKED) from error


def stored_plans(store: ObjectStore, tenant: str) -> dict[str, Plan]:
    """Every collection plan by its key. Raises IntegrityError."""
    plans = stored(store, layout.plans_prefix(tenant), decode_plan)
    return {head.key: plan for head, plan in plans}


def in_parallel(
    act: Callable[[_Given], _T], items: Iterable[_Given], parallel: int
) -> Iterator[_T]:
    """`act` on every item, results in order; with `parallel` 1 in the caller's own thread.

    Items are taken a few ahead of the results and no more, however many there are.
    """
    if parallel < 2:
        yield from map(act, items)
        return
    with ThreadPoolExecutor(parallel, "collect") as pool:
        under_way: deque[Future[_T]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(act, item))
                if len(under_way) >= parallel * 4:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _keys_of(record: Record) -> tuple[str, ...]:
    # Interned: most records of a log name the same keys again.
    return tuple(dict.fromkeys(sys.intern(c.key) for c in chunks_of(record.contents())))


def _log_entry(prefix: str, head: ObjectHead) -> LogEntry | None:
    adapter, _, name = head.key.removeprefix(prefix).partition("/log/")
    try:
        gen = layout.parse_log_key(name)
        return LogEntry(layout.check_id("adapter", adapter), gen, head.key, head.modified)
    except InvalidName:
        return None

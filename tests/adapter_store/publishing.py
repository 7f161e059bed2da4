"""Publishers in slow motion, and the checker of what a log promises."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from adapter_store.commit import Limits, Published, Publisher
from adapter_store.draft import Author, fence_record
from adapter_store.errors import NotFound, StoreError
from adapter_store.layout import AdapterRef, log_key, parse_ref
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind, VersionRef
from adapter_store.validate import LocalAdapter, check_content
from tests.adapter_store.adapter_files import CARD, local_adapter

TENANT, ADAPTER = "default", "pirate"
REF = AdapterRef(TENANT, ADAPTER)


class SteppedClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def publisher(store: ObjectStore, **changes: Any) -> Publisher:
    """A publisher whose time is stepped and whose warnings go nowhere unless asked for."""
    clock = SteppedClock()
    settings: dict[str, Any] = {
        "actor": "test",
        "warn": lambda text: None,
        "clock": clock,
        "sleep": clock.sleep,
        "limits": Limits(publish_s=60, settle_s=10),
    }
    return Publisher(store, **{**settings, **changes})


@cache
def adapter(seed: int) -> LocalAdapter:
    """A valid adapter; equal seeds give equal content."""
    with tempfile.TemporaryDirectory() as folder:
        return local_adapter(Path(folder), seed=seed)


def publish(store: ObjectStore, seed: int, **options: Any) -> Published:
    return publisher(store).publish(TENANT, ADAPTER, adapter(seed), **options)


def stage(store: ObjectStore, seed: int, **options: Any) -> Published:
    return publisher(store).stage(TENANT, ADAPTER, adapter(seed), **options)


def activate(store: ObjectStore, **options: Any) -> Published:
    return publisher(store).activate(TENANT, ADAPTER, **options)


def roll_back(store: ObjectStore, **options: Any) -> Published:
    return publisher(store).rollback(TENANT, ADAPTER, **options)


def split(store: ObjectStore, weights: Mapping[str, int], **options: Any) -> Published:
    return publisher(store).split(TENANT, ADAPTER, weights, **options)


def delete(store: ObjectStore, **options: Any) -> Published:
    return publisher(store).delete(TENANT, ADAPTER, **options)


@dataclass(frozen=True)
class View:
    """What the newest record says, by the seeds of its content."""

    active: int | None = None
    staged: int | None = None
    split: tuple[tuple[int, int], ...] = ()
    """(weight, seed) of each arm."""


def view(store: ObjectStore, seeds: Iterable[int] = range(12)) -> View:
    """What a fresh reader finds, every byte of all of it fetched and checked."""
    reader = Reader(store)
    try:
        head = reader.head(TENANT, ADAPTER)
    except NotFound:
        return View()

    def seed(version: VersionRef | None) -> int | None:
        if version is None:
            return None
        files = reader.fetch(TENANT, version, adapter=ADAPTER)
        check_content(files, config=version.config, card_modules=CARD.modules)
        return next(seed for seed in seeds if adapter(seed).files == files)

    arms = tuple((arm.weight, seed(arm.version)) for arm in head.split)
    return View(seed(head.active), seed(head.staged), arms)


def served_seed(store: ObjectStore, seeds: Iterable[int] = range(12), **reader: Any) -> int:
    """Which of `seeds` a fresh reader gets, every byte and every tensor checked."""
    found = Reader(store, **reader).resolve(REF)
    files = Reader(store, **reader).fetch(TENANT, found.version, adapter=ADAPTER)
    check_content(files, config=found.version.config, card_modules=CARD.modules)
    return next(seed for seed in seeds if adapter(seed).files == files)


def version(store: ObjectStore, text: str) -> VersionRef:
    """What a fresh reader finds under this label or digest."""
    return Reader(store).resolve(parse_ref(f"{ADAPTER}@{text}")).version


def append(store: ObjectStore, **changes: Any) -> Record:
    """Write the next record by hand: a fence on the head with `changes`."""
    head = Reader(store).head(TENANT, ADAPTER)
    author = Author("f" * 31 + f"{head.gen % 16:x}", 1, "test", "")
    record = fence_record(head, author, tenant=TENANT, adapter=ADAPTER)
    record = replace(record, **changes)
    store.put_new(log_key(TENANT, ADAPTER, record.gen), record.encode())
    return record


def tombstone(store: ObjectStore) -> Record:
    return append(store, kind=RecordKind.TOMBSTONE, active=None, staged=None, split=())


def broken_promises(
    store: ObjectStore,
    *,
    acknowledged: Iterable[Published] = (),
    failed_txids: Iterable[str] = (),
) -> list[str]:
    """What the log and its content break of I1 to I5, in words; empty when all holds.

    And whether each record says what one of its kind may say beside its parent.
    """
    broken: list[str] = []
    records: list[Record] = []
    try:
        for record in Reader(store).history(TENANT, ADAPTER):
            records.append(record)
        view(store)
    except StoreError as error:
        broken.append(f"the log or the current content is not whole: {error}")
    by_gen = {record.gen: record for record in records}
    if sorted(by_gen) != list(range(1, len(records) + 1)):
        broken.append(f"generations have gaps: {sorted(by_gen)}")
    for done in acknowledged:
        found = by_gen.get(done.gen)
        if found is None or found.txid != done.txid:
            broken.append(f"acknowledged generation {done.gen} is lost")
        elif found != done.record:
            broken.append(f"acknowledged generation {done.gen} has other content")
    for before, after in pairwise((None, *reversed(records))):
        assert after is not None
        broken += [f"generation {after.gen} {text}" for text in undrawn(before, after)]
    txids = [record.txid for record in records]
    broken += [f"{txid} failed and is in the log" for txid in failed_txids if txid in txids]
    broken += [f"{txid} committed twice" for txid in set(txids) if txids.count(txid) > 1]
    return broken


def undrawn(before: Record | None, after: Record) -> list[str]:
    """What `after` changed of its parent that is not for its kind to change."""
    was = (before.active, before.staged, before.split) if before else (None, None, ())
    now = (after.active, after.staged, after.split)
    active, staged, split = (old == new for old, new in zip(was, now, strict=True))
    told = {
        RecordKind.PUBLISH: now[0] is not None and now[1:] == (None, ()),
        RecordKind.ROLLBACK: now[0] is not None and now[1:] == (None, ()),
        RecordKind.ACTIVATE: now[0] is not None and now[1:] == (None, ()),
        RecordKind.STAGE: active and split and now[1] is not None,
        RecordKind.SPLIT: active and staged and len(now[2]) >= 2,
        RecordKind.TOMBSTONE: now == (None, None, ()),
        RecordKind.FENCE: active and staged and split,
    }
    labels = {entry.label: entry.vdig for entry in after.versions}
    kept = all(labels.get(e.label, e.vdig) == e.vdig for e in (before.versions if before else ()))
    return [
        *([] if told[after.kind] else [f"is no {after.kind.value} of its parent"]),
        *([] if kept else ["gives a label another meaning"]),
    ]


def keys(store: ObjectStore, folder: str) -> tuple[str, ...]:
    return store.list(f"v1/t/{TENANT}/{folder}/").keys

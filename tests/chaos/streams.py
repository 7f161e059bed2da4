"""Publishers that publish without pause, and the reading back of what they were promised."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapter_store.commit import Limits, Published, Publisher
from adapter_store.errors import Conflict, OutcomeUnknown, StoreError, StoreUnavailable
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.validate import LocalAdapter, read_adapter_dir
from tests.adapter_store.adapter_files import CARD, write_adapter

TENANT = "default"
LIMITS = Limits(publish_s=1.0, settle_s=0.5)
"""Shorter than a restart, so that a kill leaves outcomes unknown."""
_PAUSE_S = 0.05


@dataclass
class Stream:
    """One publisher's commits to an adapter of its own, new content each time."""

    number: int
    store: ObjectStore
    folder: Path
    acknowledged: list[Published] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Transactions whose outcome nobody knows yet."""
    refused: list[str] = field(default_factory=list)
    """Transactions that were said never to land."""
    failed: int = 0
    troubles: list[str] = field(default_factory=list)
    """Answers that a publisher should never get."""
    _made: int = 0

    @property
    def name(self) -> str:
        return f"stream-{self.number}"

    def publish_until(self, stop: threading.Event) -> None:
        while not stop.is_set() and not self.troubles:
            try:
                self.publish()
            except OutcomeUnknown as error:
                self.unknown.append(error.txid)
            except StoreUnavailable:
                self.failed += 1
                stop.wait(_PAUSE_S)
            except StoreError as error:
                self.troubles.append(f"{self.name}: {type(error).__name__}: {error}")

    def publish(self) -> None:
        done = self._publisher().publish(TENANT, self.name, self._content())
        self.acknowledged.append(done)

    def settle(self) -> None:
        """Ask what became of every unknown outcome; a landed one counts as acknowledged."""
        for txid in self.unknown:
            try:
                self.acknowledged.append(self._publisher().settle(TENANT, self.name, txid))
            except Conflict:
                self.refused.append(txid)
        self.unknown.clear()

    def _publisher(self) -> Publisher:
        return Publisher(self.store, actor=self.name, warn=lambda text: None, limits=LIMITS)

    def _content(self) -> LocalAdapter:
        self._made += 1
        seed = self.number * 1_000_000 + self._made
        return read_adapter_dir(write_adapter(self.folder / self.name, seed=seed), card=CARD)


def lost_or_torn(store: ObjectStore, acknowledged: Sequence[Published]) -> list[str]:
    """What is missing of these commits, by reading every byte back."""
    reader = Reader(store)
    broken = []
    for done in acknowledged:
        what = f"{done.adapter} generation {done.gen}"
        try:
            record = reader.record(done.tenant, done.adapter, done.gen)
            if record.txid != done.txid or record.active is None:
                broken.append(f"{what} is lost: another holds its slot")
            elif record.active.vdig != done.vdig:
                broken.append(f"{what} has other content")
            else:
                reader.fetch(done.tenant, record.active)
        except StoreError as error:
            broken.append(f"{what}: {type(error).__name__}: {error}")
    return broken


def broken_log(store: ObjectStore, stream: Stream) -> list[str]:
    """What the whole log of a stream breaks: chain, gaps, and what was said of its commits."""
    try:
        records = list(Reader(store).history(TENANT, stream.name))
    except StoreError as error:
        return [f"{stream.name}: {type(error).__name__}: {error}"]
    txids = [record.txid for record in records]
    broken = [f"{stream.name}: {txid} landed twice" for txid in txids if txids.count(txid) > 1]
    broken += [f"{stream.name}: {txid} was refused" for txid in stream.refused if txid in txids]
    return broken + lost_or_torn(store, stream.acknowledged)

"""What the store must look like at every instant: I1 to I6, judged from its raw bytes.

The ledger sees each change of the bucket as it is applied and decodes records with `json` alone,
so that it shares no code with what it judges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.simulation.bucket import Bucket

_SERVED = ("active", "staged", "split", "versions")


@dataclass(slots=True)
class Log:
    """One adapter's records as they were committed."""

    records: list[dict[str, Any]] = field(default_factory=list)
    digest: str = ""
    """sha256 of the newest record's bytes."""
    keys: list[frozenset[str]] = field(default_factory=list)
    """Chunk keys that each record names."""

    def needed(self, keep: int) -> frozenset[str]:
        """Chunk keys of the newest `keep` records, while the newest serves anything."""
        newest = self.keys[-keep:]
        return frozenset().union(*newest) if newest and newest[-1] else frozenset()


class Ledger:
    """Every commit so far, and what was promised about it. `keep` records may not lose bytes."""

    def __init__(self, *, keep: int) -> None:
        self.keep = keep
        self.logs: dict[tuple[str, str], Log] = {}
        self.txids: set[str] = set()
        self.failed: set[str] = set()
        self.pinned: dict[str, frozenset[str]] = {}
        """Chunk keys by the pin that must keep them."""
        self._digests: dict[str, str] = {}
        self._bucket: Bucket | None = None
        self._report: Callable[[str], None] = lambda text: None

    def copied_from(self, other: Ledger) -> Ledger:
        self.logs = {
            name: Log(list(log.records), log.digest, list(log.keys))
            for name, log in other.logs.items()
        }
        self.txids = set(other.txids)
        self._digests = dict(other._digests)
        return self

    def watch(self, bucket: Bucket, report: Callable[[str], None]) -> None:
        self._bucket, self._report = bucket, report
        bucket.on_put, bucket.on_delete = self._on_put, self._on_delete

    def acknowledge(self, tenant: str, adapter: str, gen: int, record: bytes) -> None:
        """A publisher was told that `record` stands at this generation; I6 keeps it there."""
        records = self.log(tenant, adapter).records
        if not 1 <= gen <= len(records) or records[gen - 1] != json.loads(record):
            self._report(f"I2 acknowledged generation {gen} of {adapter} is not in the log")

    def give_up(self, txid: str) -> None:
        """A publisher was told that this transaction did not land and never will."""
        self.failed.add(txid)
        if txid in self.txids:
            self._report(f"I3 {txid} was reported failed and is in the log")

    def promise(self, pin: str, keys: frozenset[str]) -> None:
        """Somebody was told that these chunks stay."""
        assert self._bucket is not None
        self.pinned[pin] = keys
        for key in keys:
            if key not in self._bucket:
                self._report(f"I1 {key}, which {pin} keeps, is gone")

    def log(self, tenant: str, adapter: str) -> Log:
        return self.logs.setdefault((tenant, adapter), Log())

    def vdigs(self, tenant: str, adapter: str, gen: int) -> frozenset[str]:
        """Digests of the content that a generation names; empty when there is no such record."""
        records = self.log(tenant, adapter).records
        return _vdigs(records[gen - 1]) if 1 <= gen <= len(records) else frozenset()

    def needed(self) -> set[str]:
        """Chunk keys that no collector may touch."""
        needed: set[str] = set()
        for log in self.logs.values():
            needed |= log.needed(self.keep)
        return needed.union(*self.pinned.values())

    def check_whole(self) -> None:
        """I1 for everything kept."""
        assert self._bucket is not None
        for key in self.needed():
            if key not in self._bucket:
                self._report(f"I1 {key} is needed and gone")

    def _on_put(self, key: str, body: bytes) -> None:
        digest = hashlib.sha256(body).hexdigest()
        if self._digests.setdefault(key, digest) != digest:
            self._report(f"I6 {key} changed")
        if "/log/" in key:
            self._on_commit(key, body, digest)

    def _on_commit(self, key: str, body: bytes, digest: str) -> None:
        record = json.loads(body)
        tenant, adapter, txid = record["tenant"], record["adapter"], record["txid"]
        log = self.log(tenant, adapter)
        where = f"generation {record['gen']} of {adapter}"
        name, _, slot = key.split("/a/")[1].partition("/log/")
        if name != adapter or int(slot.rsplit("-", 1)[1]) != record["gen"]:
            self._report(f"I5 {where} lies at {key}")
        if record["gen"] != len(log.records) + 1:
            self._report(f"I5 {where} after {len(log.records)}")
        if record["parent"] != log.digest:
            self._report(f"I5 {where} has another parent")
        if txid in self.txids:
            self._report(f"I4 {txid} committed again at {where}")
        if txid in self.failed:
            self._report(f"I3 {txid} was reported failed and lands at {where}")
        if log.records and record["fence"] < log.records[-1]["fence"]:
            self._report(f"I5 the fence falls at {where}")
        if record["kind"] == "fence" and log.records:
            before = log.records[-1]
            if any(record[part] != before[part] for part in (*_SERVED, "fence")):
                self._report(f"I5 the fence record at {where} changes what is served")
        self.txids.add(txid)
        log.records.append(record)
        log.digest = digest
        log.keys.append(frozenset(_chunk_keys(record)))
        assert self._bucket is not None
        for chunk in log.keys[-1]:
            if chunk not in self._bucket:
                self._report(f"I1 {where} names {chunk}, which is not there")

    def _on_delete(self, key: str) -> None:
        if "/log/" in key:
            self._report(f"I6 {key} was deleted")
        if "/pin/" in key:
            # Pinned, let go and pinned again: the one kind of key that may come back.
            del self._digests[key]
        if "/blob/" in key:
            for (_, adapter), log in self.logs.items():
                if key in log.needed(self.keep):
                    self._report(f"I1 {key}, which {adapter} needs, was deleted")
            for pin, keys in self.pinned.items():
                if key in keys:
                    self._report(f"I1 {key}, which {pin} keeps, was deleted")


def _versions(record: dict[str, Any]) -> Iterable[dict[str, Any]]:
    arms = [arm["version"] for arm in record["split"]]
    return [version for version in (record["active"], record["staged"], *arms) if version]


def _vdigs(record: dict[str, Any]) -> frozenset[str]:
    return frozenset(version["vdig"] for version in _versions(record))


def _chunk_keys(record: dict[str, Any]) -> Iterable[str]:
    for version in _versions(record):
        for file in version["files"]:
            for chunk in file["chunks"]:
                yield chunk["key"]

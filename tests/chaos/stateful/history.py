"""What the store's logs have said, and when: the truth that answers are held against."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapter_store.layout import AdapterRef
from adapter_store.record import Record

Name = tuple[str, str]
"""Tenant and adapter."""


@dataclass(slots=True)
class Log:
    """One adapter's records, oldest first, each with the time of its commit."""

    records: list[Record] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    """Digest of every label that was ever committed."""

    @property
    def gen(self) -> int:
        return self.records[-1].gen if self.records else 0

    def serves(self, gen: int, affinity: str) -> set[str]:
        """The digests of what a generation may give to a caller with this affinity key."""
        record = self.records[gen - 1] if 1 <= gen <= self.gen else None
        if record is None or record.active is None:
            return set()
        arms = {arm.version.vdig for arm in record.split} if affinity else set()
        return arms or {record.active.vdig}

    def since(self, moment: float) -> list[Record | None]:
        """Every record that was the newest at some time since; None for no record at all."""
        first = sum(time <= moment for time in self.times)
        return [self.records[first - 1] if first else None, *self.records[first:]]


class History:
    """Every log there is."""

    def __init__(self) -> None:
        self._logs: dict[Name, Log] = {}

    def copy(self) -> History:
        """Its own from now on."""
        other = History()
        other._logs = {
            name: Log(list(log.records), list(log.times), dict(log.labels))
            for name, log in self._logs.items()
        }
        return other

    def log(self, tenant: str, adapter: str) -> Log:
        return self._logs.get((tenant, adapter)) or Log()

    def learn(self, record: Record, *, now: float) -> None:
        """A publisher committed this record, or found it there."""
        log = self._logs.setdefault((record.tenant, record.adapter), Log())
        if record.gen == log.gen:
            return
        assert record.gen == log.gen + 1, "every commit is learnt of"
        log.records.append(record)
        log.times.append(now)
        for version in record.contents():
            assert log.labels.setdefault(version.label, version.vdig) == version.vdig

    def absent_since(self, ref: AdapterRef, moment: float) -> bool:
        """Whether at some time since then the reference meant nothing."""
        log = self.log(ref.tenant, ref.adapter)
        return not all(_finds(log, record, ref) for record in log.since(moment))


def _finds(log: Log, record: Record | None, ref: AdapterRef) -> bool:
    if record is None:
        return False
    if not ref.pinned:
        return record.active is not None
    if any(ref.label == v.label or ref.vdig == v.vdig for v in record.contents()):
        return True
    known = {entry.label: entry.vdig for entry in record.versions}
    return record.active is not None and (ref.label in known or ref.vdig in known.values())

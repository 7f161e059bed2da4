"""What each bare name serves on this node, and that no name goes back in time. Pure Python."""

from __future__ import annotations

from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.adapters.watcher import Watcher

Name = tuple[str, str]
"""Tenant and adapter."""


class Names:
    """For the engine thread. A name serves only what is wholly resident; the watcher follows it."""

    def __init__(self, slots: SlotTable, watcher: Watcher) -> None:
        self._slots = slots
        self._watcher = watcher
        self._reached: dict[Name, int] = {}
        """The generation that each name has served, or was deleted at: nothing older serves it."""
        self._followed: dict[Name, int] = {}
        """Names that are watched whether they are served or not, with the generation known."""
        self.withdrawals = 0
        """How often what a name served was no longer to be believed: the way back."""
        self.swaps = 0
        """How often a served name went on to another version."""

    def serving(self, tenant: str, adapter: str) -> Entry | None:
        return self._slots.serving(tenant, adapter)

    def served_by(self, key: VersionKey) -> list[Entry]:
        """Every name that means this version, as it is served."""
        served = (self._slots.serving(*name) for name in self._slots.served_names())
        return [entry for entry in served if entry is not None and entry.key == key]

    def by_version(self) -> dict[VersionKey, list[Entry]]:
        """As `served_by`, of every version that any name means."""
        found: dict[VersionKey, list[Entry]] = {}
        for name in self._slots.served_names():
            entry = self._slots.serving(*name)
            if entry is not None:
                found.setdefault(entry.key, []).append(entry)
        return found

    def is_news(self, entry: Entry) -> bool:
        """Whether its name has not gone past it while it was loading."""
        return entry.gen >= self._reached.get((entry.tenant, entry.adapter), 0)

    def replaces(self, entry: Entry) -> bool:
        """Whether it is the next version of a name that is served by an older one."""
        current = self._slots.serving(entry.tenant, entry.adapter)
        return current is not None and current.gen < entry.gen and self.is_news(entry)

    def staleness(self, entry: Entry, now: float) -> float:
        """Seconds since the store last confirmed what a served name means, or since it came."""
        checked = self._watcher.checked_at(entry.tenant, entry.adapter)
        held = self._slots.resident(entry.key)
        since = held.since if checked is None and held is not None else checked
        return 0.0 if since is None else max(0.0, now - since)

    def stalest(self, now: float) -> float:
        """The longest that any served name has gone without."""
        served = (self._slots.serving(*name) for name in self._slots.served_names())
        return max((self.staleness(e, now) for e in served if e is not None), default=0.0)

    def serve(self, entry: Entry) -> None:
        """Let the name mean `entry`, whose version is resident, unless it has gone past it."""
        current = self._slots.serving(entry.tenant, entry.adapter)
        if self.is_news(entry) and (current is None or current.gen < entry.gen):
            self._slots.serve(entry)
            self.swaps += current is not None and current.key != entry.key
            self._reached[entry.tenant, entry.adapter] = entry.gen
            self.tell_watcher()

    def deleted(self, name: Name, gen: int) -> None:
        """There is nothing to serve any more; what is on its way to the name must not revive it."""
        self._reached[name] = max(gen, self._reached.get(name, 0))
        current = self._slots.serving(*name)
        if current is not None and current.gen < gen:
            self._forget(name)

    def withdrawn(self, name: Name, gen: int) -> None:
        """Nothing up to `gen` is to be believed; what is trusted now may be older."""
        self._reached.pop(name, None)
        self.withdrawals += 1
        current = self._slots.serving(*name)
        if current is not None and current.gen <= gen:
            self._forget(name)

    def follow(self, name: Name) -> None:
        """Have the watcher look at a name that may not be served."""
        if name not in self._followed:
            self._followed[name] = 0
            self.tell_watcher()

    def unfollow(self, name: Name) -> None:
        if self._followed.pop(name, None) is not None:
            self.tell_watcher()

    def learned(self, name: Name, gen: int) -> None:
        """The log of a name reaches `gen`."""
        if self._followed.get(name, gen) < gen:
            self._followed[name] = gen
            self.tell_watcher()

    def leave(self, name: Name, key: VersionKey) -> None:
        """Serve nothing under the name, if it is this version, until it is asked for again."""
        current = self._slots.serving(*name)
        if current is not None and current.key == key:
            self._forget(name)

    def tell_watcher(self) -> None:
        """Which names are served or followed; evictions may have ended some of it."""
        entries = (self._slots.serving(*name) for name in self._slots.served_names())
        known = self._followed | {(e.tenant, e.adapter): e.gen for e in entries if e is not None}
        self._watcher.watch((*name, gen) for name, gen in known.items())

    def check_integrity(self) -> None:
        """Raises AssertionError when a name serves what it has gone past."""
        for name in self._slots.served_names():
            entry = self._slots.serving(*name)
            assert entry is not None
            assert self._reached.get(name) == entry.gen, f"{name} serves generation {entry.gen}"

    def _forget(self, name: Name) -> None:
        self._slots.forget(*name)
        self.tell_watcher()

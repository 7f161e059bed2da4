"""Next versions of names that wait for their turn to be fetched. Pure Python.

Of a name one version is fetched at a time, and of those that wait only the newest is kept: a storm
of publishes costs as many fetches as there is time for, and none of them holds up other names.
"""

from __future__ import annotations

from inference_node.adapters.reports import Target
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.engine.names import Name


class Successors:
    """For the engine thread."""

    def __init__(self) -> None:
        self._waiting: dict[Name, Target] = {}
        self._fetching: dict[Name, VersionKey] = {}

    def wait(self, target: Target) -> None:
        """It is to be brought later, unless a newer one waits by then."""
        name = _name(target.entry)
        before = self._waiting.get(name)
        if before is None or before.entry.gen <= target.entry.gen:
            self._waiting[name] = target

    def started(self, entry: Entry, *, fetching: bool) -> None:
        """The version is on its way: nothing older need be."""
        self.forget(_name(entry), entry.gen)
        if fetching:
            self._fetching[_name(entry)] = entry.key

    def fetching(self, entry: Entry) -> VersionKey | None:
        """The version that is being fetched for the name of `entry`."""
        return self._fetching.get(_name(entry))

    def fetched(self, key: VersionKey) -> list[Target]:
        """The fetch has ended, well or not: whose turn it is now."""
        names = [name for name, fetching in self._fetching.items() if fetching == key]
        for name in names:
            del self._fetching[name]
        return [self._waiting[name] for name in names if name in self._waiting]

    def forget(self, name: Name, gen: int) -> None:
        """Nothing up to this generation is to be brought for the name."""
        waiting = self._waiting.get(name)
        if waiting is not None and waiting.entry.gen <= gen:
            del self._waiting[name]

    def free(self) -> list[Target]:
        """Those that wait for no fetch, but for the time to try again."""
        return [target for name, target in self._waiting.items() if name not in self._fetching]


def _name(entry: Entry) -> Name:
    return entry.tenant, entry.adapter

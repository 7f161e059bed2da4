"""Versions that may be served next, brought before anybody asks for them. Pure Python.

For the engine thread. Of a name that this node serves, and of one that it was asked to prepare for,
whatever the newest record names beside the active version is fetched, verified and, where pages are
free or idle, laid out on the device: what is staged, and the arms of a split. It waits for pages
behind every request and takes none from any. The record that makes it active then costs no fetch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from adapter_store.layout import AdapterRef
from inference_node.adapters.loader import Loader
from inference_node.adapters.outcomes import is_permanent
from inference_node.adapters.reports import Target
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.engine.arrivals import Arrivals
from inference_node.engine.claims import Claim
from inference_node.engine.names import Name, Names
from inference_node.errors import NodeError

ASKED_SECONDS = 900.0
"""How long a name that is not served is prepared for after somebody asked."""
REFRESH_SECONDS = 0.5
"""Between two looks at whether what is expected is still here."""


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a record names beside the active version."""

    gen: int
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A version that was to be had ready and cannot be, or not yet."""

    entry: Entry
    error: NodeError

    @property
    def for_good(self) -> bool:
        return is_permanent(self.error)


class Foresight:
    """What is expected to be served next."""

    def __init__(
        self,
        slots: SlotTable,
        loader: Loader,
        arrivals: Arrivals,
        names: Names,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._loader = loader
        self._arrivals = arrivals
        self._names = names
        self._clock = clock
        self._expected: dict[Name, _Expected] = {}
        self._asked: dict[Name, float] = {}
        """Until when."""
        self._claims: dict[tuple[Name, VersionKey], Claim] = {}
        self._refused: dict[tuple[Name, VersionKey], Refused] = {}
        self._due = 0.0
        self._numbers = itertools.count(1)

    def asked(self, name: Name) -> None:
        """Somebody wants this node to be ready for a name, whether it serves it or not."""
        self._asked[name] = self._clock() + ASKED_SECONDS
        self._names.follow(name)

    def is_asked(self, name: Name) -> bool:
        return name in self._asked

    def expect(self, name: Name, gen: int, ahead: Sequence[Target]) -> None:
        """The record of `gen` names these beside what is active; an older one says nothing."""
        before = self._expected.get(name)
        if before is None and not ahead:
            return
        if before is not None and (gen < before.gen or before.targets == tuple(ahead)):
            return
        if ahead:
            self._expected[name] = _Expected(gen, tuple(ahead))
        else:
            del self._expected[name]
        self._let_go(name)
        self._due = self._clock()

    def forget(self, name: Name) -> None:
        """Nothing is expected of the name."""
        self._expected.pop(name, None)
        self._let_go(name)

    def refused(self) -> Iterator[Refused]:
        """What is expected and cannot be had."""
        return iter(self._refused.values())

    def soonest(self) -> float | None:
        """When `tick` has something to do."""
        return self._due if self._expected or self._asked else None

    def tick(self) -> None:
        """Bring what is missing; call between any two steps."""
        now = self._clock()
        if now < self._due or not (self._expected or self._asked):
            return
        self._due = now + REFRESH_SECONDS
        for name, until in list(self._asked.items()):
            if until <= now:
                del self._asked[name]
                self._names.unfollow(name)
        for name, expected in list(self._expected.items()):
            if not self._is_ours(name):
                self.forget(name)
                continue
            for target in expected.targets:
                self._bring(name, target)

    def check_integrity(self) -> None:
        """Raises AssertionError when a claim waits for what is not expected."""
        wanted = {
            (name, target.entry.key)
            for name, expected in self._expected.items()
            for target in expected.targets
        }
        assert self._claims.keys() <= wanted, "a version is fetched ahead for nothing"
        assert self._refused.keys() <= wanted
        for claim in self._claims.values():
            assert self._arrivals.count(claim) == 1, f"{claim.token} waits nowhere"

    def _is_ours(self, name: Name) -> bool:
        served = self._names.serving(*name) is not None
        return served or name in self._asked or self._arrivals.brings(name)

    def _bring(self, name: Name, target: Target) -> None:
        key = target.entry.key
        place = (name, key)
        refused = self._refused.get(place)
        if place in self._claims or (refused is not None and refused.for_good):
            return
        # Asking the host is also what keeps the copy there: it counts as a use.
        if self._slots.holds(key) or self._loader.on_host(key) is not None:
            self._know(target)
            self._refused.pop(place, None)
            return

        def grant() -> None:
            self._claims.pop(place, None)
            self._refused.pop(place, None)
            self._know(target)

        def refuse(error: NodeError) -> None:
            self._claims.pop(place, None)
            self._refused[place] = Refused(target.entry, error)

        claim = Claim(
            f"ahead {next(self._numbers)}",
            AdapterRef(*name, vdig=key.vdig),
            0,
            lambda entry: None,
            grant,
            refuse,
            patient=True,
        )
        self._claims[place] = claim
        self._arrivals.claim(claim, target)

    def _know(self, target: Target) -> None:
        """So that the version is listed under this name too."""
        held = self._slots.resident(target.entry.key)
        if held is not None and (target.entry.adapter, target.entry.label) not in held.known_as:
            held.know(target.entry)

    def _let_go(self, name: Name) -> None:
        """Of a name, what is expected no longer."""
        expected = self._expected.get(name)
        wanted = {target.entry.key for target in expected.targets} if expected is not None else ()
        for place in [place for place in self._claims if place[0] == name]:
            if place[1] not in wanted:
                self._arrivals.withdraw(self._claims.pop(place))
        for place in [place for place in self._refused if place[0] == name]:
            if place[1] not in wanted:
                del self._refused[place]

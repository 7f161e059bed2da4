"""A publisher that flips a fleet, through the barrier, one adapter after the other, at a rate."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from adapter_store.barrier import Barrier, Quorum, Subject
from adapter_store.commit import Limits, Publisher
from adapter_store.errors import (
    FleetUnseen,
    NotReady,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
)
from adapter_store.locks import open_lock
from adapter_store.notify import open_announcer
from adapter_store.registry import open_registry
from adapter_store.settings import Endpoints
from adapter_store.validate import LocalAdapter
from tests.chaos.fleet.tattoos import Tattoos, name
from tests.conftest import open_endpoint

TENANT = "default"
PUBLISH_EVERY_S = 2.0
ROLLBACK_EVERY = 15
"""One change of so many is a rollback."""
READY_S = 10.0
"""How long a flip waits for the nodes."""
_LIMITS = Limits(publish_s=5.0, settle_s=2.0)


class Flipper:
    """Changes one adapter after the other, through the barrier."""

    def __init__(
        self,
        endpoints: Endpoints,
        tattoos: Tattoos,
        adapters: int,
        rng: random.Random,
        *,
        first: int = 1,
    ) -> None:
        """`first` is the version that each adapter begins with."""
        self.done: Counter[str] = Counter()
        self.troubles: list[str] = []
        self._tattoos = tattoos
        self._adapters = adapters
        self._rng = rng
        self._first = first
        self._versions: dict[int, int] = {}
        """Of each adapter, the version that is made next."""
        self._flipped: set[int] = set()
        """Adapters that have served another version before their newest."""
        self._registry = open_registry(endpoints.redis_url)
        self._publisher = _publisher(endpoints, _LIMITS)
        self._patient = _publisher(endpoints, Limits())
        """While nothing is stopped there is nothing to give up for."""

    def figures(self) -> dict[str, int]:
        """How many changes ended how."""
        return {
            "flips": self.done["flipped"],
            "flips_without_a_view_of_the_fleet": self.done["unseen"],
            "flips_not_ready_in_time": self.done["not ready"],
            "rollbacks": self.done["rolled back"],
            "changes_the_store_was_away_for": self.done["away"],
        }

    def begin(self) -> None:
        """The first version of every adapter."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self.publish, range(self._adapters)))

    def run(self, stop: threading.Event) -> None:
        due = time.monotonic() + PUBLISH_EVERY_S
        for number in itertools.count(1):
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            due = max(due + PUBLISH_EVERY_S, time.monotonic())
            change, adapters = self._flip, list(range(self._adapters))
            if number % ROLLBACK_EVERY == 0 and self._flipped:
                change, adapters = self._roll_back, sorted(self._flipped)
            adapter = self._rng.choice(adapters)
            try:
                change(adapter)
            except (StoreUnavailable, OutcomeUnknown):
                self.done["away"] += 1
            except StoreError as error:
                self.troubles.append(f"adapter {adapter}: {type(error).__name__}: {error}")

    def _roll_back(self, adapter: int) -> None:
        self._flipped.discard(adapter)
        self._publisher.rollback(TENANT, name(adapter))
        self.done["rolled back"] += 1

    def _flip(self, adapter: int) -> None:
        local, label = self._next(adapter)
        staged = self._publisher.stage(TENANT, name(adapter), local, label=label)
        version = staged.record.staged
        assert version is not None
        subject = Subject(TENANT, name(adapter), staged.gen, version.base, version.vdig)
        try:
            Barrier(self._registry, subject).wait(
                Quorum(), timeout_s=READY_S, show=lambda seen: None
            )
        except NotReady:
            self.done["not ready"] += 1
            return
        except FleetUnseen:
            self.done["unseen"] += 1
        self._publisher.activate(TENANT, name(adapter), expect_gen=staged.gen)
        self._flipped.add(adapter)
        self.done["flipped"] += 1

    def publish(self, adapter: int) -> int:
        """New content, to everybody at once; the generation it got."""
        local, label = self._next(adapter)
        return self._patient.publish(TENANT, name(adapter), local, label=label).gen

    def _next(self, adapter: int) -> tuple[LocalAdapter, str]:
        version = self._versions.setdefault(adapter, self._first)
        self._versions[adapter] += 1
        return self._tattoos.adapter(adapter, version), f"v{version}"


def _publisher(endpoints: Endpoints, limits: Limits) -> Publisher:
    return Publisher(
        open_endpoint(endpoints),
        lock=open_lock(endpoints.redis_url),
        announcer=open_announcer(endpoints.redis_url),
        actor="fleet",
        warn=lambda text: None,
        limits=limits,
    )

"""A publisher that flips a fleet, through the barrier, one adapter after the other."""

from __future__ import annotations

import random
import threading
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
from tests.chaos.fleet.tattoos import Tattoos
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
        self._registry = open_registry(endpoints.redis_url)
        self._publisher = Publisher(
            open_endpoint(endpoints),
            lock=open_lock(endpoints.redis_url),
            announcer=open_announcer(endpoints.redis_url),
            actor="fleet",
            warn=lambda text: None,
            limits=_LIMITS,
        )

    def begin(self) -> None:
        """The first version of every adapter."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self.publish, range(self._adapters)))

    def run(self, stop: threading.Event) -> None:
        for number in range(1, 10**6):
            if stop.wait(PUBLISH_EVERY_S):
                return
            adapter = self._rng.randrange(self._adapters)
            try:
                self._change(adapter, back=number % ROLLBACK_EVERY == 0)
            except (StoreUnavailable, OutcomeUnknown):
                self.done["away"] += 1
            except StoreError as error:
                self.troubles.append(f"adapter {adapter}: {type(error).__name__}: {error}")

    def _change(self, adapter: int, *, back: bool) -> None:
        name = f"tattoo-{adapter}"
        if back and self._versions[adapter] > 2:
            self._publisher.rollback(TENANT, name)
            self.done["rolled back"] += 1
            return
        local, label = self._next(adapter)
        staged = self._publisher.stage(TENANT, name, local, label=label)
        version = staged.record.staged
        assert version is not None
        subject = Subject(TENANT, name, staged.gen, version.base, version.vdig)
        try:
            Barrier(self._registry, subject).wait(
                Quorum(), timeout_s=READY_S, show=lambda seen: None
            )
        except NotReady:
            self.done["not ready"] += 1
            return
        except FleetUnseen:
            self.done["unseen"] += 1
        self._publisher.activate(TENANT, name, expect_gen=staged.gen)
        self.done["flipped"] += 1

    def publish(self, adapter: int) -> int:
        """New content, to everybody at once; the generation it got."""
        local, label = self._next(adapter)
        return self._publisher.publish(TENANT, f"tattoo-{adapter}", local, label=label).gen

    def _next(self, adapter: int) -> tuple[LocalAdapter, str]:
        version = self._versions.setdefault(adapter, self._first)
        self._versions[adapter] += 1
        return self._tattoos.adapter(adapter, version), f"v{version}"

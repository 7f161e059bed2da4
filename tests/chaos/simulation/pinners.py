"""People who pin versions and unpin them again, each call a process of its own."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

from adapter_store.draft import chunks_of
from adapter_store.errors import NotFound, OutcomeUnknown, StoreUnavailable
from adapter_store.layout import AdapterRef
from adapter_store.pins import pin, unpin
from adapter_store.reader import Reader
from tests.chaos.simulation.connection import Connection
from tests.chaos.simulation.contents import ADAPTERS, CONTENTS, TENANT, vdig
from tests.chaos.simulation.world import World


class Pinners:
    """Now and then somebody pins or unpins a version; what was promised is in the ledger."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended: Counter[str] = Counter()
        """Unpins that came to an end: a pin that one of them overlaps promises nothing."""
        self._open: Counter[str] = Counter()
        """Unpins that did not, and may delete the pin at any time."""

    def move(self) -> None:
        random = self._world.random
        if self._world.calm or random.random() > 0.02:
            return
        adapter, number = random.choice(ADAPTERS), random.randrange(CONTENTS)
        (self._pin if random.random() < 0.7 else self._unpin)(adapter, vdig(number))

    def unpin_all(self) -> None:
        """Nobody needs anything but what is served."""
        self._world.ledger.pinned.clear()
        for key in self._world.bucket.under(f"v1/t/{TENANT}/pin/"):
            self._world.bucket.delete(key)

    def _pin(self, adapter: str, digest: str) -> None:
        name = f"the pin on {digest[:8]} of {adapter}"
        before = self._ended[name]

        def act(store: Connection) -> None:
            found = Reader(store, parallel=1).resolve(AdapterRef(TENANT, adapter, vdig=digest))
            pin(store, found, sleep=self._world.sleep, new_id=self._new_id)
            if self._ended[name] == before and not self._open[name]:
                keys = frozenset(chunk.key for chunk in chunks_of([found.version]))
                self._world.ledger.promise(name, keys)

        self._start("pin", name, act)

    def _unpin(self, adapter: str, digest: str) -> None:
        name = f"the pin on {digest[:8]} of {adapter}"
        self._open[name] += 1
        self._world.ledger.pinned.pop(name, None)

        def act(store: Connection) -> None:
            with contextlib.suppress(NotFound):
                unpin(store, TENANT, adapter, digest)
            self._ended[name] += 1
            self._open[name] -= 1

        self._start("unpin", name, act)

    def _new_id(self) -> str:
        return f"{self._world.random.getrandbits(128):032x}"

    def _start(self, verb: str, name: str, act: Callable[[Connection], None]) -> None:
        world = self._world
        process = world.process("pinner")

        def run() -> None:
            try:
                act(Connection(world, process))
                outcome = "done"
            except NotFound:
                outcome = "too late"
            except (StoreUnavailable, OutcomeUnknown):
                outcome = "given up"
            world.tally.outcomes[f"{verb}: {outcome}"] += 1
            world.note(f"{verb}: {outcome}")
            process.dead = True

        world.note(f"{process.name} starts: {verb}, {name}")
        world.baton.spawn(process, process.name, run)

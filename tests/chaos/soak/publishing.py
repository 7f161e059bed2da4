"""A publisher that publishes every two seconds and rolls back every thirty, whatever else happens.

It reaches store and Redis by lines that are cut now and then, so some of what it does fails and of
some nobody knows how it ended. What was committed, the log says in the end.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from adapter_store.commit import Published, Publisher
from adapter_store.errors import Conflict, NotFound, OutcomeUnknown, StoreUnavailable
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.settings import Endpoints, StoreSettings
from tests.chaos.soak.stock import ADAPTERS, Stock, name_of

PUBLISH_S, ROLLBACK_S = 2.0, 30.0
HOT = 8
"""Adapters that most publishes and most requests are for."""
_HOT_SHARE = 0.75
_AT_FIRST = 4
"""Publishers that bring the first versions."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The latest version of an adapter that its publisher knows of."""

    gen: int
    label: str
    vdig: str


class Publishing:
    """`newest` and `labels` say what was acknowledged, for callers to ask for."""

    def __init__(self, stock: Stock, endpoints: Endpoints, seed: int) -> None:
        settings = StoreSettings.model_validate(asdict(endpoints))
        self._stock = stock
        self._random = random.Random(seed)
        self._publisher = Publisher(
            settings.open_store(),
            lock=settings.open_lock(),
            announcer=settings.open_announcer(),
            actor="soak",
            warn=lambda text: None,
        )
        self.newest: dict[str, Newest] = {}
        self.labels: dict[str, list[Newest]] = {}
        self.tally: Counter[str] = Counter()
        self.troubles: list[str] = []
        """Errors that a publisher should never get."""

    def begin(self) -> None:
        """The first version of every adapter."""
        with ThreadPoolExecutor(_AT_FIRST) as pool:
            for done in pool.map(self._publish, range(ADAPTERS)):
                self._learn(done)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Publishes and rolls back for as long as the block."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=[stop], name="publishing", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _run(self, stop: threading.Event) -> None:
        began = time.monotonic()
        publish_at, rollback_at = began + PUBLISH_S, began + ROLLBACK_S
        while not stop.wait(max(0.0, publish_at - time.monotonic())):
            self._try("published", lambda: self._publish(self._choose()))
            publish_at += PUBLISH_S
            if time.monotonic() >= rollback_at:
                self._try("rolled back", self._roll_back)
                rollback_at += ROLLBACK_S

    def _try(self, what: str, act: Callable[[], Published]) -> None:
        try:
            self._learn(act())
        except OutcomeUnknown:
            self.tally["outcomes unknown"] += 1
        except StoreUnavailable:
            self.tally["publishes without a store"] += 1
        except (Conflict, NotFound):
            # A commit of unknown outcome landed after all, or there is nothing to go back to.
            self.tally["publishes refused"] += 1
        except Exception as error:
            self.troubles.append(f"a publisher is told {type(error).__name__}: {error}")
        else:
            self.tally[what] += 1

    def _choose(self) -> int:
        hot = self._random.random() < _HOT_SHARE
        chosen = self._random.randrange(HOT if hot else ADAPTERS)
        while not self._stock.has_more(chosen):
            chosen = self._random.randrange(ADAPTERS)
        return chosen

    def _publish(self, adapter: int) -> Published:
        return self._publisher.publish(DEFAULT_TENANT, name_of(adapter), self._stock.make(adapter))

    def _roll_back(self) -> Published:
        several = [name for name, known in self.labels.items() if len(known) > 1]
        name = self._random.choice(several or [name_of(0)])
        return self._publisher.rollback(DEFAULT_TENANT, name)

    def _learn(self, done: Published) -> None:
        newest = Newest(done.gen, done.label, done.vdig)
        self.newest[done.adapter] = newest
        known = self.labels.setdefault(done.adapter, [])
        if all(one.label != done.label for one in known):
            known.append(newest)

"""Learns of new records of the names that are served: from hints, and by polling without them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

from adapter_store.coordination import Hint
from adapter_store.errors import IntegrityError, StoreError, Untrusted
from inference_node.adapters.loader import Loader

log = logging.getLogger(__name__)


class Hints(Protocol):
    """Where news of log growth comes from; losing some is harmless."""

    @property
    def healthy(self) -> bool: ...

    @property
    def gaps(self) -> int:
        """How often hints may have been lost."""
        ...

    def poll(self, timeout_s: float, /) -> Sequence[Hint]: ...


class Watcher:
    """Looks at the logs of served names: at once on a hint, and in turn by the clock."""

    def __init__(
        self,
        loader: Loader,
        hints: Hints | None,
        *,
        poll_seconds: float,
        poll_seconds_without_hints: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._hints = hints
        self._slow, self._fast = poll_seconds, poll_seconds_without_hints
        self._clock = clock
        self._names: dict[tuple[str, str], int] = {}
        # Engine and watcher both write here: entry by entry, so neither loses what the other notes.
        self._checked: dict[tuple[str, str], float] = {}
        self._gaps = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def hints_healthy(self) -> bool | None:
        """None where there are no hints to listen to."""
        return None if self._hints is None else self._hints.healthy

    def watch(self, names: Iterable[tuple[str, str, int]]) -> None:
        """What is served or prepared for now, with the generation known. Replaces what was watched.

        A name that is new here is looked at soon: its log may have grown while it was loading.
        """
        before = self._names
        self._names = {(tenant, adapter): gen for tenant, adapter, gen in names}
        self._forget_checks_except(before)

    def checked_at(self, tenant: str, adapter: str) -> float | None:
        """When this name was last found current, on the watcher's clock."""
        return self._checked.get((tenant, adapter))

    def note_checked(self, tenant: str, adapter: str) -> None:
        self._checked[tenant, adapter] = self._clock()

    def turn(self, hints: Sequence[Hint]) -> None:
        """Look at every name that `hints` or the clock make due. May block."""
        for name in self._due(hints):
            self._look(name)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.turn(self._wait())

    def _wait(self) -> Sequence[Hint]:
        if self._hints is not None:
            return self._hints.poll(0.5)
        self._stop.wait(0.5)
        return ()

    def _due(self, hints: Sequence[Hint]) -> list[tuple[str, str]]:
        names = self._names
        if self._hints is not None and self._hints.gaps != self._gaps:
            self._gaps = self._hints.gaps
            self._loader.hear(None)
            return list(names)
        for hint in hints:
            if hint.ahead:
                self._loader.ask_ahead(hint.tenant, hint.adapter)
        hinted = frozenset((hint.tenant, hint.adapter) for hint in hints)
        if hinted:
            self._loader.hear(hinted)
        period = self._slow if self._hints is not None and self._hints.healthy else self._fast
        before = self._clock() - period
        self._forget_checks_except(names)
        return [
            name for name in names if name in hinted or self._checked.get(name, before) <= before
        ]

    def _forget_checks_except(self, names: Container[tuple[str, str]]) -> None:
        for name in list(self._checked):
            if name not in names:
                self._checked.pop(name, None)

    def _look(self, name: tuple[str, str]) -> None:
        try:
            self._loader.look(*name, self._names.get(name, 0))
        except Untrusted as error:
            # Said once by the reader that refused it.
            log.debug("nothing of %s is trusted: %s", name, error)
        except IntegrityError as error:
            log.warning("the log of %s is damaged, what is resident keeps serving: %s", name, error)
        except StoreError as error:
            log.debug("cannot look at %s: %s", name, error)
        except Exception:
            log.exception("looking at %s failed", name)
        else:
            self.note_checked(*name)

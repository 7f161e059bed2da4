"""What one publish does to the store, seen from outside, and how Ctrl-C ends it.

Ctrl-C must leave a true sentence on the screen. Until the log record goes out nothing can have
been published; from then on only the log knows.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from adapter_store import layout
from adapter_store.objects import ListPage, ObjectHead, ObjectStore


class WatchedStore:
    """Passes every call on until it is stopped; safe for several threads."""

    def __init__(self, store: ObjectStore, *, tenant: str, adapter: str) -> None:
        self._store = store
        self._log = layout.log_prefix(tenant, adapter)
        self._intents = layout.intents_prefix(tenant)
        self._stopped = threading.Event()
        self.committing = False
        """Whether a log record may be on its way, or have landed."""

    def stop(self) -> None:
        """From now on every call raises KeyboardInterrupt, so that upload threads end soon."""
        self._stopped.set()

    def get(self, key: str) -> bytes:
        self._go_on()
        return self._store.get(key)

    def put_new(self, key: str, body: bytes) -> None:
        self._go_on()
        if key.startswith(self._log):
            self.committing = True
        self._store.put_new(key, body)
        if key.startswith(self._intents):
            # A next attempt begins only after another's record took the slot of the last one.
            self.committing = False

    def head(self, key: str) -> ObjectHead:
        self._go_on()
        return self._store.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        self._go_on()
        return self._store.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def delete(self, key: str) -> None:
        self._go_on()
        self._store.delete(key)

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on Ctrl-C, before KeyboardInterrupt is raised as usual. Main thread only."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        stop()
        # Not through sys.stderr: the interrupted code may be in the middle of writing to it.
        os.write(2, b"\nstopping, the requests under way are waited for ...\n")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

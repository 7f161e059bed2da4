"""What files say, as they change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from inference_node.errors import BadConfiguration

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """Files that are read again when one of them has changed; safe to share between threads.

    A change that cannot be understood is reported once and ignored: what held goes on holding.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], T],
        *,
        look_every: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look_every` is the seconds for which nobody looks again; without, everybody looks.

        A look is a system call for each file, in which this thread may lose its turn to others.
        `read` raises BadConfiguration, and so does this.
        """
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._look_every = look_every
        self._next_look = clock() + look_every
        self._seen = self._look()
        self._value = read()

    @property
    def now(self) -> T:
        """The same object until the files say something else."""
        if self._look_every:
            now = self._clock()
            if now < self._next_look:
                return self._value
            self._next_look = now + self._look_every
        seen = self._look()
        if seen != self._seen:
            with self._lock:
                if seen != self._seen:
                    self._seen = seen
                    self._reload()
        return self._value

    def _reload(self) -> None:
        try:
            self._value = self._read()
        except BadConfiguration as error:
            _log.error("the changed %s is ignored: %s", self._what, error)
        else:
            _log.info("the changed %s is in force", self._what)

    def _look(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple(_stamp(path) for path in self._paths)


def read_file(path: Path, *, what: str) -> bytes:
    """Raises BadConfiguration naming `what` and the path."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfiguration(f"{what} {path} cannot be read: {error.strerror}") from None


def _stamp(path: Path) -> tuple[int, int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0, 0
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

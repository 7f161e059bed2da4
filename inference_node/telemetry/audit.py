"""Which digest served whom: one JSON line for every request, in a file that only grows.

A thread of its own writes, so that no request waits for a disk. Serving goes on when lines cannot
be written, because the disk is full or slow: they are counted, the log says so, and the first line
that gets through again is preceded by one that says how many are missing. What a full disk or a
kill left of a line is closed off: it is no JSON, and the next line is whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import queue
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from inference_node.ended import Ended
from inference_node.errors import BadConfiguration
from inference_node.telemetry.request_log import told

log = logging.getLogger(__name__)

WAITING = 10_000
"""Lines that wait to be written; further ones are lost."""
BATCH = 500
"""Lines that are written before the disk is told to keep them."""
LEAVING_SECONDS = 5.0
"""Given to lines that still wait when the node leaves."""


class AuditFile:
    """For one thread. The file may be moved away: a new one is made then."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._file = -1
        self._torn = False
        self._open()

    def write(self, line: bytes) -> None:
        """Append a line whole. Raises OSError when it is not there."""
        if self._torn:
            self._append(b"\n")
            self._torn = False
        self._append(line)

    def keep(self) -> None:
        """Whatever was written survives a power cut. Raises OSError."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            # Pipes and terminals keep nothing.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise

    def follow(self) -> None:
        """Open the path anew if it is another file by now. Raises OSError."""
        if not self._is_there():
            self.close()
            self._open()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _is_there(self) -> bool:
        """Whether the path is still the file that is open, if any is."""
        if self._file < 0:
            return False
        try:
            now, ours = self._path.stat(), os.fstat(self._file)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        self._file = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self._torn = self._ends_in_mid_line()

    def _ends_in_mid_line(self) -> bool:
        """As a node leaves it that is killed while it writes."""
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return False
        try:
            with self._path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        except OSError:
            return True

    def _append(self, line: bytes) -> None:
        if os.write(self._file, line) < len(line):
            self._torn = True
            raise OSError(errno.ENOSPC, "only a part of a line was written")


class Audit:
    """A witness of the server's calls. A context: lines are written while it is entered."""

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        waiting: int = WAITING,
    ) -> None:
        """Raises BadConfiguration when the file cannot be had."""
        try:
            self._file = AuditFile(path)
        except OSError as error:
            raise BadConfiguration(
                f"audit file {path} cannot be written: {error.strerror}",
                hint="make its folder and let the node write there, or set LORAPOOL_AUDIT_FILE",
            ) from error
        self._path = path
        self._now = now
        self._lines: queue.Queue[bytes | None] = queue.Queue(waiting)
        self._lock = threading.Lock()
        self._lost = 0
        self._untold = 0
        """Of those: the file does not say so yet."""
        self._away = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    @property
    def lost(self) -> int:
        """Lines that were not written."""
        with self._lock:
            return self._lost

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=LEAVING_SECONDS)
        self._thread.join(LEAVING_SECONDS)

    def ended(self, ended: Ended) -> None:
        try:
            self._lines.put_nowait(self._line(told(ended)))
        except queue.Full:
            self._lose(1)

    def answered(self, method: str, code: str) -> None: ...

    def leaving(self) -> None: ...

    def _line(self, fields: dict[str, object]) -> bytes:
        moment = self._now().isoformat(timespec="microseconds")
        return json.dumps({"time": moment, **fields}).encode() + b"\n"

    def _run(self) -> None:
        leaving = False
        while not leaving:
            batch = self._take()
            leaving = None in batch
            self._write([line for line in batch if line is not None])
        self._file.close()

    def _take(self) -> list[bytes | None]:
        """At least one line."""
        batch = [self._lines.get()]
        with contextlib.suppress(queue.Empty):
            while len(batch) < BATCH:
                batch.append(self._lines.get_nowait())
        return batch

    def _write(self, lines: list[bytes]) -> None:
        written = 0
        try:
            self._file.follow()
            with self._lock:
                untold = self._untold
            if untold:
                self._file.write(self._line({"lost_lines": untold}))
                with self._lock:
                    self._untold -= untold
            for line in lines:
                self._file.write(line)
                written += 1
            self._file.keep()
        except OSError as error:
            self._lose(len(lines) - written)
            self._tell(away=True, why=f": {error.strerror}")
        else:
            self._tell(away=False)

    def _tell(self, *, away: bool, why: str = "") -> None:
        """Log it when it changes."""
        if away and not self._away:
            log.error("audit lines for %s are lost%s", self._path, why)
        elif self._away and not away:
            log.warning("audit lines are written to %s again, %d are lost", self._path, self.lost)
        self._away = away

    def _lose(self, number: int) -> None:
        with self._lock:
            self._lost += number
            self._untold += number

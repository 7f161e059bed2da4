"""A program on a terminal of its own, as a person would use it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

PATIENCE = 60.0
_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


class Terminal:
    """`inference-node ARGUMENTS` in a pseudo-terminal; what it showed, without control codes."""

    def __init__(self, *arguments: str) -> None:
        self.shown = ""
        self._own, other = pty.openpty()
        script = "import sys; from inference_node.cli import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.getcwd(),
                "TERM": "xterm",
                "COLUMNS": "120",
                "LINES": "40",
            },
        )
        os.close(other)

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, whatever the terminal is set to."""
        self._process.send_signal(signal.SIGINT)

    def wait_for(self, text: str, *, after: int = 0) -> int:
        """Until `text` is shown behind position `after`; the position behind it."""
        end = time.monotonic() + PATIENCE
        while (at := self.shown.find(text, after)) < 0:
            assert time.monotonic() < end, f"{text!r} never came: {self.shown[after:]!r}"
            self._read()
        return at + len(text)

    def leave(self) -> int:
        """Until the program has ended; its exit code."""
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            assert time.monotonic() < end, f"it goes on: {self.shown!r}"
            self._read()
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._own)

    def _read(self) -> None:
        if not select.select([self._own], [], [], 0.1)[0]:
            return
        try:
            self.shown += _CODES.sub("", os.read(self._own, 65536).decode(errors="replace"))
        except OSError:
            # Linux says so when the program has closed its side.
            return

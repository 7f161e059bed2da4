"""A measured system in a process of its own: one JSON line asks, one JSON line answers.

Between its turns a process is stopped (SIGSTOP): whatever it runs in the background, its threads
take no core from the system whose turn it is. Standard library alone, because the peers' own
interpreters import this too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# A stopped process heeds SIGKILL alone, so that is what it gets when its parent dies.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class WorkerFailed(Exception):
    """The process ended, or answered with an error."""


class Process:
    """A child in its own process group that runs only while it is awake."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path,
        piped: bool = True,
    ) -> None:
        """Standard error, and standard output unless `piped`, go to `log`."""
        self.log = log
        pipe = subprocess.PIPE if piped else subprocess.DEVNULL
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *argv],
                stdin=pipe,
                stdout=pipe if piped else out,
                stderr=out,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                process_group=0,
                text=True,
            )

    def wake(self) -> None:
        os.killpg(self.popen.pid, signal.SIGCONT)

    def pause(self) -> None:
        os.killpg(self.popen.pid, signal.SIGSTOP)

    def kill(self) -> None:
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process (it has no children that count)."""
        for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])


class Worker:
    """A process that answers questions by `serve`."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path
    ) -> None:
        """Waits until it is ready. Raises WorkerFailed when it never is."""
        self.process = Process(argv, env=env, log=log)
        self.facts = self._answer()
        self.process.pause()

    def ask(self, op: str, **what: Any) -> Any:
        """Its turn: wake it, have `op` answered, stop it. Raises WorkerFailed."""
        self.process.wake()
        assert self.process.popen.stdin is not None
        self.process.popen.stdin.write(json.dumps([op, what]) + "\n")
        self.process.popen.stdin.flush()
        answer = self._answer()
        self.process.pause()
        return answer

    def close(self) -> None:
        self.process.kill()

    def _answer(self) -> Any:
        assert self.process.popen.stdout is not None
        line = self.process.popen.stdout.readline()
        if not line:
            self.process.kill()
            raise WorkerFailed(f"it ended:\n{self.process.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            self.process.kill()
            raise WorkerFailed(answer["error"])
        return answer["ok"]


def serve(start: Callable[[], tuple[Any, Mapping[str, Callable[..., Any]]]]) -> None:
    """The worker's side: facts once it is ready, then one answer a question until the end.

    Whatever its libraries print goes to standard error instead.
    """
    with os.fdopen(os.dup(1), "w") as wire:
        os.dup2(2, 1)

        def answer(value: dict[str, Any]) -> None:
            wire.write(json.dumps(value) + "\n")
            wire.flush()

        try:
            facts, operations = start()
            answer({"ok": facts})
            for line in sys.stdin:
                op, what = json.loads(line)
                answer({"ok": operations[op](**what)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
            raise

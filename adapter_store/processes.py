"""Child processes: started in their own group, named beyond a recycled pid, stopped for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 6.0

# prctl(PR_SET_PDEATHSIG) in a launcher of its own, since forking Python code out of a process
# that runs gRPC or CUDA threads is not safe. It survives exec; the check closes the race with a
# parent that died first.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that stays the same process: a pid and when the kernel started it."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        return bool(self.started) and _started(self.pid) == self.started

    def signal_group(self, number: int) -> None:
        """Signal its whole group; nothing when it is gone or the pid belongs to another."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


def process_id(pid: int) -> ProcessId:
    """The identity of a running process; one that is not alive when there is none."""
    return ProcessId(pid, _started(pid))


def launch(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    log: Path,
    die_with_parent: bool,
) -> subprocess.Popen[bytes]:
    """Start `argv` (an absolute path first) in its own session, output appended to `log`.

    With `die_with_parent` (Linux) the kernel sends it SIGTERM when the calling thread ends, so
    call from a thread that lives as long as the process.
    """
    command = list(argv)
    if die_with_parent and sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *argv]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_all(processes: Sequence[ProcessId], *, grace_s: float = GRACE_S) -> None:
    """SIGTERM to every group at once, SIGKILL to what is left after `grace_s`."""
    for process in processes:
        process.signal_group(signal.SIGTERM)
    if not _wait_gone(processes, grace_s):
        for process in processes:
            process.signal_group(signal.SIGKILL)
        _wait_gone(processes, grace_s)


def _wait_gone(processes: Sequence[ProcessId], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(process.is_alive() for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _started(pid: int) -> str:
    """When the process started, in the kernel's own words; empty for none and for a zombie."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return ""
        state, *rest = stat[stat.rindex(")") + 2 :].split()
        return "" if state in "ZX" else rest[18]
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = answer.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()

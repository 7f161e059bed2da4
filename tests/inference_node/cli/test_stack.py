"""`up` and `down`: the whole stack from one command, with the real base model."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapter_store.settings import read_stack
from inference_node.addresses import is_loopback
from tests.inference_node.rpc.authority import Authority

pytestmark = [pytest.mark.services, pytest.mark.model]

NO_VARIABLES: Mapping[str, str] = {}
PROGRAM = Path(sys.executable).parent / "inference-node"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def node(
    folder: Path, listen: str, *arguments: str, environment: Mapping[str, str] = NO_VARIABLES
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "LORAPOOL_S3" not in name}
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        env=kept | {"LORAPOOL_LISTEN": listen, "LORAPOOL_POOL_MB": "32"} | dict(environment),
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


def test_up_puts_a_gateway_before_several_nodes(envoy: Path, tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    try:
        page = f"127.0.0.1:{free_port()}"
        one = {"LORAPOOL_PLAYGROUND_LISTEN": page}
        up = node(tmp_path, listen, "up", "--nodes", "2", "--gateway", environment=one)
        assert up.returncode == 0, up.stderr
        stack = read_stack(tmp_path / ".lorapool")
        assert stack is not None
        assert set(stack.addresses) == {"node-1", "node-2", "gateway"}
        assert stack.addresses["gateway"] == listen
        assert all(is_loopback(address) for address in stack.addresses.values())
        assert page in (tmp_path / ".lorapool" / "node-1.log").read_text()
        shown = node(tmp_path, listen, "status", "--stack")
        assert shown.returncode == 0
        assert shown.stdout.count("running") == 5
        asked = node(tmp_path, listen, "generate", "Say hi.", "--max-new-tokens", "8")
        assert asked.returncode == 0, asked.stderr
        stack.processes["node-1"].signal_group(signal.SIGKILL)
        shown = node(tmp_path, listen, "status", "--stack")
        assert shown.returncode == 6
        assert re.search(r"node-1 +gone", shown.stdout)
        asked = node(tmp_path, listen, "generate", "Say hi.", "--max-new-tokens", "8")
        assert asked.returncode == 0, "the other node answers"
    finally:
        down = node(tmp_path, listen, "down")
    assert "node-2, gateway" in down.stderr
    assert not any(process.is_alive() for process in stack.processes.values())


def test_up_refuses_a_certificate_that_it_would_not_show(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue()
    environment = {
        "LORAPOOL_TLS_CERT_FILE": str(files.cert),
        "LORAPOOL_TLS_KEY_FILE": str(files.key),
    }
    up = node(tmp_path, f"127.0.0.1:{free_port()}", "up", environment=environment)
    assert up.returncode == 2
    assert "LORAPOOL_TLS_CERT_FILE" in up.stderr


def test_up_does_not_take_another_program_for_its_node(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        up = node(tmp_path, f"127.0.0.1:{other.getsockname()[1]}", "up")
    assert up.returncode == 2
    assert "LORAPOOL_LISTEN" in up.stderr


@pytest.mark.parametrize("listen", ["unix:/tmp/node", "127.0.0.1:0"])
def test_up_refuses_an_address_by_which_nobody_would_find_it(tmp_path: Path, listen: str) -> None:
    up = node(tmp_path, listen, "up")
    assert up.returncode == 2
    assert "LORAPOOL_LISTEN" in up.stderr

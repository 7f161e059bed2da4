"""The commands that containers of the gateway run, on Envoy itself."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapter_store.services import free_ports
from inference_node.gateway import program

ROOT = Path(__file__).resolve().parents[2]
CALLS, ADMIN, METRICS = 8080, 9901, 9902


def probe() -> list[str]:
    """The gateway's health check in compose.yaml."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["gateway"]
    command: list[str] = service["healthcheck"]["test"]
    assert command.pop(0) == "CMD"
    return command


def farewell() -> list[str]:
    """What the chart's gateway does before it stops, without the waiting."""
    template = (ROOT / "deploy/helm/lorapool/templates/gateway.yaml").read_text()
    script = template.partition("exec:\n")[2].partition("          ports:")[0]
    hook: dict[str, Any] = yaml.safe_load(script.replace("{{ .Values.gateway.drainSeconds }}", "0"))
    command: list[str] = hook["command"]
    return command


@pytest.fixture
def ports(envoy: Path, tmp_path: Path) -> Iterator[dict[int, int]]:
    """Envoy with compose's configuration, on ports of this machine's choice."""
    ports = dict(zip((CALLS, ADMIN, METRICS), free_ports("127.0.0.1", 3), strict=True))
    text = (ROOT / "deploy/envoy/compose.yaml").read_text().replace("0.0.0.0", "127.0.0.1")
    for told, free in ports.items():
        text = text.replace(f'"port_value": {told}', f'"port_value": {free}')
    config = tmp_path / "envoy.yaml"
    config.write_text(text)
    process = subprocess.Popen(program.command(config), stderr=subprocess.DEVNULL)
    try:
        yield ports
    finally:
        process.terminate()
        process.wait(20)


def ran(command: list[str], ports: dict[int, int]) -> subprocess.CompletedProcess[str]:
    """The command with the ports that Envoy really has."""
    for told, free in ports.items():
        command = [part.replace(f"/{told}", f"/{free}") for part in command]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def wait_until_healthy(ports: dict[int, int]) -> None:
    deadline = time.monotonic() + 30
    while ran(probe(), ports).returncode:
        assert time.monotonic() < deadline, "Envoy never became ready by compose's health check"


def test_compose_s_health_check_says_no_before_envoy_is_there_and_yes_when_it_is(
    ports: dict[int, int],
) -> None:
    nobody = dict(zip((CALLS, ADMIN, METRICS), free_ports("127.0.0.1", 3), strict=True))
    assert ran(probe(), nobody).returncode != 0
    wait_until_healthy(ports)


def test_before_a_gateway_stops_it_drains_its_listeners(ports: dict[int, int]) -> None:
    wait_until_healthy(ports)
    done = ran(farewell(), ports)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HTTP/1.1 200"), done.stdout

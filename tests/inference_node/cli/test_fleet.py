"""The fleet, as people and scripts see it: real servers that tell of themselves in a real Redis."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from adapter_store.fleet import Holding, Standing
from adapter_store.registry import open_registry
from inference_node.rpc.server import Membership
from tests.adapter_store.cli.shell import validator
from tests.adapter_store.fleet_cards import holding
from tests.adapter_store.waiting import wait_until
from tests.inference_node.cli.program import Run
from tests.inference_node.cli.terminal import Terminal
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.rpc.scripted_control import ScriptedControl
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.services
HELD: tuple[tuple[Holding, ...], ...] = (
    (
        holding("tone", 4, "v2", v1=Standing.HOST, v2=Standing.DEVICE),
        holding("voice", 1, "v1", v1=Standing.DEVICE),
    ),
    (holding("tone", 3, "v1", v1=Standing.DEVICE, v2=Standing.COMING, v3="CORRUPT"),),
)


@pytest.fixture
def addresses(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two nodes that serve one name in different generations; the environment names their Redis."""
    monkeypatch.setenv("LORAPOOL_REDIS_URL", redis_url)
    registry = open_registry(redis_url)
    with contextlib.ExitStack() as running:
        servers = []
        for number, held in enumerate(HELD):
            control = ScriptedControl()
            control.held = held
            fleet = Membership(registry, f"n{number}")
            node = running_server(ScriptedEngine(), CONFIG, control=control, fleet=fleet)
            servers.append(running.enter_context(node))
        wait_until(lambda: len(registry.nodes()) == len(HELD))
        yield [f"127.0.0.1:{server.port}" for server in servers]


def test_status_shows_every_node_and_which_adapters_they_serve_apart(
    addresses: list[str], run: Run
) -> None:
    ran = run("status", "--fleet")
    assert ran.code == 0, ran.err
    for address in addresses:
        assert address in ran.out
    assert "2 nodes serve 2 adapters, 1 of them on more than one node, 1 in different" in ran.out
    assert f"default/tone  generations by node: {addresses[1]} 3, {addresses[0]} 4" in ran.out


def test_what_status_prints_for_scripts_is_as_published(addresses: list[str], run: Run) -> None:
    told = json.loads(run("status", "--fleet", "--json").out)
    validator("nodes").validate(told)
    assert {node["address"] for node in told["nodes"]} == set(addresses)
    tone = next(one for one in told["adapters"] if one["adapter"] == "tone")
    assert (tone["generation"], tone["skew"], tone["nodes"], told["skewed"]) == (4, 1, 2, 1)
    second = next(node for node in told["nodes"] if node["address"] == addresses[1])
    versions = second["holdings"][0]["versions"]
    assert {one["version"]: (one["standing"], one["reason"]) for one in versions} == {
        "v1": ("device", None),
        "v2": ("coming", None),
        "v3": ("failed", "CORRUPT"),
    }


def test_top_shows_the_fleet_live_once_and_for_scripts(addresses: list[str], run: Run) -> None:
    with Terminal("top", "--fleet") as terminal:
        terminal.wait_for(addresses[0])
        terminal.wait_for("1 in different generations")
        terminal.interrupt()
        assert terminal.leave() == 0
    assert "TOKENS/S" in run("top", "--fleet", "--once", "--seconds", "0.1").out
    told = json.loads(run("top", "--fleet", "--once", "--seconds", "0.1", "--json").out)
    assert set(told["tokens_per_second"]) == {"n0", "n1"}


def test_a_fleet_without_nodes_or_without_redis_is_said_with_what_to_do(
    run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.delenv("LORAPOOL_REDIS_URL", raising=False)
    ran = run("status", "--fleet")
    assert (ran.code, "set LORAPOOL_REDIS_URL" in ran.err) == (6, True)
    monkeypatch.setenv("LORAPOOL_REDIS_URL", "redis://127.0.0.1:1/0")
    assert run("top", "--fleet", "--once").code == 6
    monkeypatch.setenv("LORAPOOL_REDIS_URL", redis_url)
    ran = run("status", "--fleet")
    assert (ran.code, "0 nodes serve 0 adapters" in ran.out) == (6, True)


def test_options_that_reach_one_node_are_refused_beside_fleet(run: Run) -> None:
    ran = run("status", "--fleet", "--address", "127.0.0.1:1")
    assert (ran.code, "--address" in ran.err) == (2, True)
    assert run("top", "--fleet", "--admin", "127.0.0.1:1").code == 2

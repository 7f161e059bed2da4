"""The live view against a real server: on a terminal, once, and for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from inference_node.client import Client
from tests.inference_node.cli.program import Run
from tests.inference_node.cli.terminal import Terminal
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.rpc.scripted_control import ScriptedControl, version
from tests.inference_node.rpc.scripted_engine import ScriptedEngine


@dataclass
class Scene:
    """A node with `ada` on the device, and where it listens."""

    control: ScriptedControl
    address: str
    admin: str

    def options(self) -> tuple[str, ...]:
        return ("--address", self.address, "--admin", self.admin)

    def swap(self) -> None:
        (before,) = self.control.loaded
        named = replace(before.served, version="v2", generation=4, digest="b" * 64)
        after = replace(before, served=named, names=(named,))
        self.control.loaded = (replace(before, names=()), after)


@pytest.fixture
def scene() -> Iterator[Scene]:
    control = ScriptedControl()
    control.loaded = (version("ada", leases=2),)
    config = replace(CONFIG, admin_listen="127.0.0.1:0")
    with running_server(ScriptedEngine(), config, control=control) as server:
        yield Scene(control, f"127.0.0.1:{server.port}", f"127.0.0.1:{server.admin_port}")


def test_a_terminal_shows_the_node_and_what_changes_until_it_is_left(scene: Scene) -> None:
    with Terminal("top", *scene.options()) as terminal:
        at = terminal.wait_for("tokens/s")
        at = terminal.wait_for("q+k+v", after=at)
        terminal.wait_for("ada", after=at)
        scene.swap()
        terminal.wait_for("ada: v1 -> v2 (generation 4)", after=at)
        with Client(scene.address) as client:
            client.generate("hi", adapter="ada")
        terminal.wait_for("1 answered", after=at)
        terminal.interrupt()
        assert terminal.leave() == 0


def test_one_look_is_one_document(scene: Scene, run: Run) -> None:
    ran = run("top", "--once", "--seconds", "0.5", "--json", *scene.options())
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["pool"]["groups"][0]["total"] == 8
    (listed,) = told["versions"]
    assert (listed["adapter"], listed["tier"], listed["leases"]) == ("ada", "device", 2)
    assert (told["running"], told["waiting"], told["failed"]) == (1, 2, 0)


def test_one_look_is_one_picture(scene: Scene, run: Run) -> None:
    shown = run("top", "--once", "--seconds", "0.3", *scene.options()).out
    assert "v1 (3)" in shown
    assert "1 on the device, 0 leases, 0 fetched now, 0 wait for pages; host 2, 0 of 0 MiB" in shown
    assert "device" in shown


def test_without_an_operators_address_the_rest_is_shown(scene: Scene, run: Run) -> None:
    ran = run("top", "--once", "--seconds", "0.1", "--address", scene.address)
    assert "7 of 8 pages free" in ran.out
    assert "--admin" in ran.out
    told = json.loads(
        run("top", "--once", "--seconds", "0.1", "--json", "--address", scene.address).out
    )
    assert told["pool"] is None


def test_a_node_that_is_not_there_is_said_and_json_needs_once(run: Run) -> None:
    assert run("top", "--once", "--address", "127.0.0.1:1").code == 6
    assert run("top", "--json").code == 2


def test_an_operators_address_where_nobody_listens_is_said(scene: Scene, run: Run) -> None:
    options = ("--address", scene.address, "--admin", "127.0.0.1:1")
    assert run("top", "--once", "--seconds", "30", *options).code == 6

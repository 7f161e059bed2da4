"""What a node serves when the newest record is no publish: staged, split, activated, deleted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapter_store.layout import DEFAULT_TENANT
from adapter_store.record import RecordKind
from adapter_store.validate import LocalAdapter, read_adapter_dir
from inference_node.adapters.loader import Loader
from inference_node.adapters.loader import _target as loader_target
from inference_node.adapters.reports import Learned, Target
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry
from inference_node.adapters.weights import HostAdapter
from inference_node.errors import AdapterNotFound
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.tiny import make_adapter

POLLING = {"poll_seconds_without_hints": 0.05}


@dataclass
class Scene:
    """Adapter `a` serves `v1`; `second` is other content for it."""

    node: Node
    second: LocalAdapter
    first_tokens: list[int]

    def stage(self) -> int:
        return self.node.publisher.stage(DEFAULT_TENANT, "a", self.second, label="v2").gen

    def split(self) -> int:
        return self.node.publisher.split(DEFAULT_TENANT, "a", {"v1": 1, "v2": 99}).gen

    def activate(self) -> int:
        return self.node.publisher.activate(DEFAULT_TENANT, "a").gen

    def delete(self) -> int:
        return self.node.publisher.delete(DEFAULT_TENANT, "a").gen

    def served_gen(self) -> int | None:
        entry = self.node.engine._admission._slots.serving(DEFAULT_TENANT, "a")
        return entry.gen if entry else None


StartScene = Callable[..., Scene]


@pytest.fixture
def start(start_tiny: StartTiny, tmp_path: Path) -> StartScene:
    def start(**changes: object) -> Scene:
        node = start_tiny(**changes)
        modules = dict(node.card.modules)
        folders = [make_adapter(tmp_path / f"{n}", modules, rank=8, seed=n) for n in (1, 2)]
        node.publish("a", folders[0], label="v1")
        second = read_adapter_dir(folders[1], card=node.card)
        return Scene(node, second, node.ask("a").tokens)

    return start


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the watcher brings about by itself."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_staging_and_splitting_change_nothing_that_is_served(start: StartScene) -> None:
    scene = start()
    for change in (scene.stage, scene.split):
        generation = change()
        after = scene.node.ask("a", min_generation=generation).wait()
        assert after.token_ids == scene.first_tokens
        served = after.completed.served
        assert (served.version, served.generation) == ("v1", generation)
    scene.node.settle()


def test_the_watcher_takes_a_staging_for_no_change_and_an_activation_for_one(
    start: StartScene,
) -> None:
    scene = start(**POLLING)
    staged = scene.stage()
    until(lambda: scene.served_gen() == staged)
    assert scene.node.ask("a").tokens == scene.first_tokens
    activated = scene.activate()
    until(lambda: scene.served_gen() == activated)
    after = scene.node.ask("a").wait()
    assert after.completed.served.version == "v2"
    assert after.token_ids != scene.first_tokens
    scene.node.settle()


def test_a_staged_version_can_be_asked_for_by_its_label_before_it_is_active(
    start: StartScene,
) -> None:
    scene = start()
    scene.stage()
    early = scene.node.ask("a@v2").wait()
    assert early.completed.served.version == "v2"
    assert early.token_ids != scene.first_tokens
    assert scene.node.ask("a").tokens == scene.first_tokens
    generation = scene.activate()
    after = scene.node.ask("a", min_generation=generation).wait()
    assert after.token_ids == early.token_ids
    assert after.completed.served.generation == generation
    scene.node.settle()


def test_an_activation_leaves_a_running_request_on_the_version_it_started_on(
    start: StartScene,
) -> None:
    scene = start()
    undisturbed = scene.node.ask("a", tokens=160).tokens
    scene.stage()
    running = scene.node.ask("a", tokens=160).wait(tokens=3)
    generation = scene.activate()
    after = scene.node.ask("a", min_generation=generation).wait()
    assert not running.ended, "the activation must happen while the first request runs"
    assert after.completed.served.version == "v2"
    assert running.completed.served.version == "v1"
    assert running.token_ids == undisturbed
    scene.node.settle()


@pytest.mark.parametrize("told", ["by the watcher", "by asking the store"])
def test_after_a_deletion_new_requests_find_nothing_and_running_ones_finish(
    start: StartScene, told: str
) -> None:
    scene = start(**(POLLING if told == "by the watcher" else {"max_staleness": 0.0}))
    undisturbed = scene.node.ask("a", tokens=400).tokens
    running = scene.node.ask("a", tokens=400).wait(tokens=3)
    scene.delete()
    if told == "by the watcher":
        until(lambda: scene.served_gen() is None)
    for name in ("a", "a@v1"):
        assert isinstance(scene.node.ask(name).error, AdapterNotFound)
    assert not running.ended, "the deletion must happen while the first request runs"
    assert running.tokens == undisturbed
    scene.node.settle()


def test_a_version_still_on_its_way_does_not_revive_a_deleted_adapter(
    start: StartScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = start(**POLLING)
    go_on, served = threading.Event(), []
    fetch, serve = Loader._fetch, SlotTable.serve

    def slow(self: Loader, target: Target) -> HostAdapter:
        assert go_on.wait(PATIENCE)
        return fetch(self, target)

    def noted(self: SlotTable, entry: Entry) -> None:
        served.append(entry.gen)
        serve(self, entry)

    monkeypatch.setattr(Loader, "_fetch", slow)
    monkeypatch.setattr(SlotTable, "serve", noted)
    scene.stage()
    scene.activate()
    wanted = scene.node.engine._admission.arrivals._coming
    until(lambda: any(entry.gen == 3 for w in list(wanted.values()) for entry in w.names))
    scene.delete()
    until(lambda: scene.served_gen() is None)
    go_on.set()
    until(lambda: not wanted)
    assert 3 not in served
    assert isinstance(scene.node.ask("a").error, AdapterNotFound)


def test_a_deleted_adapter_is_served_again_once_it_is_published(start: StartScene) -> None:
    scene = start(**POLLING)
    scene.delete()
    until(lambda: scene.served_gen() is None)
    assert isinstance(scene.node.ask("a").error, AdapterNotFound)
    revived = scene.node.publisher.rollback(DEFAULT_TENANT, "a", to="v1")
    after = scene.node.ask("a", min_generation=revived.gen).wait()
    assert after.token_ids == scene.first_tokens
    assert after.completed.served.generation == revived.gen == 3


def test_an_adapter_that_was_only_staged_is_not_found_until_it_is_activated(
    start: StartScene,
) -> None:
    scene = start()
    staged = scene.node.publisher.stage(DEFAULT_TENANT, "b", scene.second, label="first")
    assert staged.kind is RecordKind.STAGE
    assert isinstance(scene.node.ask("b").error, AdapterNotFound)
    assert scene.node.ask("b@first").completed.served.version == "first"
    scene.node.publisher.activate(DEFAULT_TENANT, "b")
    assert scene.node.ask("b", min_generation=2).completed.served.generation == 2


def test_control_a_node_that_serves_what_is_staged_is_caught(
    start: StartScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded bug: what the watcher learns is the staged version, when there is one."""
    scene = start(**POLLING)
    look = Loader.look

    def eager(self: Loader, tenant: str, adapter: str, known_gen: int) -> None:
        record = self._reader.head(tenant, adapter)
        if record.staged is None or record.gen <= known_gen:
            look(self, tenant, adapter, known_gen)
            return
        target = loader_target(tenant, adapter, record.gen, record.staged)
        self._post(Learned(tenant, adapter, record.gen, target))

    monkeypatch.setattr(Loader, "look", eager)
    staged = scene.stage()
    until(lambda: scene.served_gen() == staged)
    assert scene.node.ask("a").tokens != scene.first_tokens

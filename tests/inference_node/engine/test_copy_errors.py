"""A copy to the device that fails leaves nothing behind, and the old version serves meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_node.adapters.backoff import Delays
from inference_node.adapters.loader import Loader
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.versions import Resident
from inference_node.adapters.weights import HostAdapter
from inference_node.engine import setbacks as setbacks_module
from inference_node.errors import (
    EngineFailure,
)
from tests.adapter_store.waiting import wait_until
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.troubled_store import TroubledStore, publish, served_gen
from tests.inference_node.harness import PATIENCE, Node


@pytest.fixture
def store() -> TroubledStore:
    return TroubledStore()


def fail_one_copy(node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The copy of a swap breaks half way; what the free pages hold afterwards, group by group."""
    monkeypatch.setattr(setbacks_module, "RETRIES", Delays(first=0.1, longest=0.1))
    write = AdapterPool.write
    failures = ["once"]
    left: list[float] = []

    def break_half_way(self: AdapterPool, staged: Resident, host: HostAdapter) -> None:
        write(self, staged, host)
        if failures:
            failures.pop()
            raise RuntimeError("the device gave an error")

    fill = Loader._fill

    def look_after(self: Loader, staged: Resident, host: HostAdapter) -> None:
        broken = bool(failures)
        fill(self, staged, host)
        if broken:
            pages = self._pool.read_back(staged)
            left.extend(float(a.abs().sum() + b.abs().sum()) for a, b in pages)

    first = publish(node, folder, "a", 1)
    before = node.ask("a").tokens
    monkeypatch.setattr(AdapterPool, "write", break_half_way)
    monkeypatch.setattr(Loader, "_fill", look_after)
    second = publish(node, folder, "a", 2)
    assert isinstance(node.ask("a", min_generation=second).error, EngineFailure)
    assert node.ask("a").tokens == before, "the old version serves"
    assert served_gen(node, "a") == first
    return left


def test_a_copy_to_the_device_that_fails_leaves_nothing_and_is_made_again(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_tiny(store, max_staleness=600.0)
    left = fail_one_copy(node, tmp_path, monkeypatch)
    assert left
    assert not any(left)
    wait_until(lambda: served_gen(node, "a") == 2, within_s=PATIENCE)
    assert node.ask("a").completed.served.generation == 2
    node.settle()


def test_control_pages_that_are_not_wiped_keep_the_adapter(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loader, "_wipe", lambda self, staged: True)
    node = start_tiny(store, max_staleness=600.0)
    assert any(fail_one_copy(node, tmp_path, monkeypatch))


def test_pages_that_cannot_be_wiped_are_out_of_use_and_the_rest_serves(
    start_tiny: StartTiny, store: TroubledStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loader, "_wipe", lambda self, staged: False)
    node = start_tiny(store, max_staleness=600.0)
    fail_one_copy(node, tmp_path, monkeypatch)
    wait_until(lambda: served_gen(node, "a") == 2, within_s=PATIENCE)
    use = node.engine.pool_use().result(PATIENCE)
    assert all(group.condemned == 1 for group in use.groups)
    assert node.ask("a").tokens
    node.settle()

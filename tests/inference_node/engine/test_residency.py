"""What preloading, pinning and unloading keep on the device, and whom they do not hold up."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_node.adapters.slots import SlotTable
from inference_node.engine.admission import Admission
from inference_node.errors import (
    AdapterNotLoaded,
    AdapterUnloaded,
    DeadlineExpired,
    PinRefused,
    PoolFull,
)
from inference_node.residency import ResidencyControl, Tier, VersionState
from tests.adapter_store.waiting import wait_until
from tests.inference_node.engine.operated_node import FEW, NAMES, T, error_of, loaded, resident
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.tiny import make_adapter


def test_a_preloaded_adapter_is_resident_before_the_first_request(roomy: Node) -> None:
    control: ResidencyControl = roomy.engine
    answer = control.preload(T, "a").result(PATIENCE)
    assert (answer.state, answer.tier, answer.leases) == (
        VersionState.RESIDENT,
        Tier.DEVICE,
        0,
    )
    assert [served.adapter for served in answer.names] == ["a"]
    assert answer.bytes > 0
    assert not answer.pinned
    assert roomy.ask("a").completed.served == answer.served
    again = control.preload(T, "a@v1").result(PATIENCE)
    assert again.served == answer.served


def test_a_preload_waits_for_pages_and_takes_none_from_running_requests(
    small: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[object] = []
    monkeypatch.setattr(Admission, "_pause", lambda self, resident, *rest: paused.append(resident))
    running = [small.ask(name, tokens=400).wait(tokens=1) for name in NAMES[:FEW]]
    waiting = small.engine.preload(T, "d")
    late = small.engine.preload(T, "d", timeout=0.2)
    assert isinstance(error_of(late), PoolFull)
    use = small.engine.pool_use().result(PATIENCE)
    assert (use.waiting, use.swaps_waiting, use.leases) == (1, 0, FEW)
    small.engine.cancel(running[0].request_id)
    assert waiting.result(PATIENCE).state is VersionState.RESIDENT
    assert paused == []
    small.settle()


def test_a_request_that_waits_for_pages_is_not_held_up_by_a_preload_that_came_before(
    small: Node,
) -> None:
    folder = small.engine.preload(T, "a").result(PATIENCE)
    assert folder.served.adapter == "a"
    running = [small.ask(name, tokens=400).wait(tokens=1) for name in NAMES[:FEW]]
    preload = small.engine.preload(T, "d")
    wait_until(lambda: small.engine.pool_use().result(PATIENCE).waiting == 1, within_s=PATIENCE)
    small.engine.unload(T, "a", force=True).result(PATIENCE)
    assert preload.result(PATIENCE).served.adapter == "d"
    assert small.ask("a", tokens=1, deadline_in=60.0).tokens
    for answer in running[1:]:
        assert answer.tokens
    small.settle()


def sweep(node: Node) -> None:
    """More cold adapters than the pool holds, again and again."""
    for _ in range(2):
        for name in NAMES[1:]:
            node.ask(name, tokens=1).wait()


def test_a_pinned_name_stays_from_version_to_version_until_it_is_unpinned(
    small: Node, tmp_path: Path
) -> None:
    assert small.engine.pin(T, "a").result(PATIENCE).pinned
    sweep(small)
    assert loaded(small)["a"].pinned
    second = make_adapter(tmp_path / "second", dict(small.card.modules), rank=8, seed=9)
    generation = small.publish("a", second, label="v2")
    assert small.ask("a", min_generation=generation).completed.served.version == "v2"
    sweep(small)
    assert loaded(small)["a"].served.version == "v2"
    assert loaded(small)["a"].pinned
    assert not small.engine.unpin(T, "a").result(PATIENCE).pinned
    sweep(small)
    assert "a" not in resident(small)


def test_a_pinned_version_stays_whatever_its_name_serves(small: Node, tmp_path: Path) -> None:
    first = small.engine.pin(T, "a@v1").result(PATIENCE)
    second = make_adapter(tmp_path / "second", dict(small.card.modules), rank=8, seed=9)
    generation = small.publish("a", second, label="v2")
    small.ask("a", min_generation=generation).wait()
    sweep(small)
    kept = [v for v in small.engine.list_loaded().result(PATIENCE) if v.pinned]
    assert [v.served.digest for v in kept] == [first.served.digest]
    by_digest = f"a@sha256:{first.served.digest}"
    assert not small.engine.unpin(T, by_digest).result(PATIENCE).pinned


def test_control_without_its_pin_the_sweep_evicts_it(
    small: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.engine.pin(T, "a").result(PATIENCE)
    monkeypatch.setattr(SlotTable, "_pinned", lambda self: set())
    sweep(small)
    monkeypatch.undo()
    assert "a" not in resident(small)


def test_a_pin_that_would_leave_no_room_for_others_is_refused_and_the_version_stays(
    small: Node,
) -> None:
    for name in NAMES[: FEW - 1]:
        small.engine.pin(T, name).result(PATIENCE)
    assert isinstance(error_of(small.engine.pin(T, "c")), PinRefused)
    assert "c" in resident(small)
    assert small.engine.pin(T, "a").result(PATIENCE).pinned, "pinning twice is one pin"
    assert small.ask("d").tokens, "whoever is not pinned still finds room"
    use = small.engine.pool_use().result(PATIENCE)
    assert all(group.pinned == FEW - 1 for group in use.groups)


def test_an_unloaded_adapter_leaves_the_device_and_comes_back_for_the_next_request(
    roomy: Node,
) -> None:
    before = roomy.ask("a").tokens
    free = roomy.engine.info().pool.pages_free
    gone = roomy.engine.unload(T, "a").result(PATIENCE)
    assert gone.served.adapter == "a"
    assert gone.failed_requests == 0
    assert roomy.engine.info().pool.pages_free > free
    assert (loaded(roomy)["a"].tier, loaded(roomy)["a"].state) == (
        Tier.HOST,
        VersionState.VERIFIED,
    )
    assert isinstance(error_of(roomy.engine.unload(T, "a")), AdapterNotLoaded)
    assert isinstance(error_of(roomy.engine.unpin(T, "a")), AdapterNotLoaded)
    assert roomy.ask("a").tokens == before


def test_unloading_lets_running_requests_finish_and_ends_a_pin(roomy: Node) -> None:
    roomy.engine.pin(T, "a").result(PATIENCE)
    whole = roomy.ask("a", tokens=120).tokens
    running = roomy.ask("a", tokens=120).wait(tokens=2)
    unloading = roomy.engine.unload(T, "a")
    again = roomy.ask("a", tokens=3).tokens
    states = [v.state for v in roomy.engine.list_loaded().result(PATIENCE)]
    assert not running.ended, "the second request must be answered while the first one runs"
    assert not unloading.done()
    assert sorted(state.value for state in states) == ["draining", "resident"]
    assert again == whole[:3]
    assert running.tokens == whole
    assert unloading.result(PATIENCE).failed_requests == 0
    assert not loaded(roomy)["a"].pinned
    roomy.settle()


def test_unloading_by_force_ends_its_requests_and_no_others(roomy: Node) -> None:
    whole = roomy.ask("b", tokens=60).tokens
    doomed = [roomy.ask("a", tokens=400).wait(tokens=1) for _ in range(3)]
    spared = roomy.ask("b", tokens=60).wait(tokens=1)
    answer = roomy.engine.unload(T, "a", force=True).result(PATIENCE)
    assert answer.failed_requests == 3
    for request in doomed:
        assert isinstance(request.error, AdapterUnloaded)
        assert request.error.retry_after
    assert spared.tokens == whole
    roomy.settle()


def test_unloading_tells_when_requests_held_it_longer_than_its_time(roomy: Node) -> None:
    running = roomy.ask("a", tokens=450).wait(tokens=1)
    late = error_of(roomy.engine.unload(T, "a", timeout=0.05))
    assert isinstance(late, DeadlineExpired)
    assert loaded(roomy)["a"].state is VersionState.DRAINING
    following = roomy.engine.unload(T, "a@v1")
    assert running.tokens
    assert following.result(PATIENCE).failed_requests == 0

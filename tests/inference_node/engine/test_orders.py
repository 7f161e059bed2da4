"""Every order of an operator is carried out as said, and answered once, whatever else happens."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from adapter_store.fleet import Standing
from adapter_store.layout import DEFAULT_TENANT
from inference_node.adapters.loader import Loader
from inference_node.adapters.reports import Target
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.admission import Admission
from inference_node.engine.order_desk import OrderDesk
from inference_node.engine.scheduler import Scheduler
from inference_node.errors import (
    AdapterNotFound,
    AdapterNotLoaded,
    AdapterUnloaded,
    DeadlineExpired,
    Draining,
    EngineFailure,
    InvalidRequest,
    NodeError,
    PinRefused,
    PoolFull,
    StaleNode,
)
from inference_node.residency import LoadedVersion, ResidencyControl, Tier, VersionState
from tests.adapter_store.waiting import wait_until
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.step_audit import StepAudit
from tests.inference_node.tiny import make_adapter

T = DEFAULT_TENANT
NAMES = ("a", "b", "c", "d")
FEW = 3
"""Adapters that the small pool holds."""


def error_of(answer: Future[Any]) -> NodeError:
    error = answer.exception(PATIENCE)
    assert isinstance(error, NodeError), error
    return error


def loaded(node: Node) -> dict[str, LoadedVersion]:
    """By adapter, what was listed last for it."""
    return {v.served.adapter: v for v in node.engine.list_loaded().result(PATIENCE)}


def resident(node: Node) -> set[str]:
    return {name for name, v in loaded(node).items() if v.state is VersionState.RESIDENT}


def publish_all(node: Node, folder: Path) -> None:
    for seed, name in enumerate(NAMES):
        made = make_adapter(folder / name, dict(node.card.modules), rank=8, seed=seed)
        node.publish(name, made, label="v1")


@pytest.fixture
def roomy(start_tiny: StartTiny, tmp_path: Path) -> Node:
    node = start_tiny()
    publish_all(node, tmp_path)
    return node


@pytest.fixture
def small(start_tiny: StartTiny, tmp_path: Path) -> Node:
    """A pool of three adapters, none of it kept for swaps."""
    page_bytes = start_tiny().engine.info().pool.page_bytes
    node = start_tiny(pool_bytes=FEW * page_bytes, page_wait_seconds=0.01, headroom_pages=0)
    publish_all(node, tmp_path)
    return node


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


@pytest.mark.parametrize(
    ("ref", "least", "expected"),
    [
        ("nobody", 0, AdapterNotFound),
        ("a@v9", 0, AdapterNotFound),
        ("a", 99, StaleNode),
        ("no/name", 0, InvalidRequest),
        ("", 0, InvalidRequest),
    ],
)
def test_an_order_for_what_cannot_be_had_is_refused_by_name(
    roomy: Node, ref: str, least: int, expected: type[NodeError]
) -> None:
    assert type(error_of(roomy.engine.preload(T, ref, min_generation=least))) is expected


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


def test_what_is_listed_says_where_each_version_is(
    small: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    fetch = Loader._fetch

    def slow(self: Loader, target: Target) -> HostAdapter:
        assert target.entry.adapter != "d" or go_on.wait(PATIENCE)
        return fetch(self, target)

    monkeypatch.setattr(Loader, "_fetch", slow)
    small.ask("a", tokens=1).wait()
    held = small.ask("b", tokens=400).wait(tokens=1)
    small.engine.unload(T, "a").result(PATIENCE)
    coming = small.engine.preload(T, "d")
    wait_until(lambda: "d" in loaded(small), within_s=PATIENCE)
    found = loaded(small)
    places = {name: (v.tier, v.state, v.leases) for name, v in found.items()}
    assert places == {
        "a": (Tier.HOST, VersionState.VERIFIED, 0),
        "b": (Tier.DEVICE, VersionState.RESIDENT, 1),
        "d": (Tier.STORE, VersionState.FETCHING, 0),
    }
    assert [v.bytes > 0 for v in found.values()] == [True, True, False]
    use = small.engine.pool_use().result(PATIENCE)
    assert (use.fetching, use.resident, use.leases, use.host_versions) == (1, 1, 1, 2)
    assert 0 < use.host_bytes <= use.host_budget
    for group in use.groups:
        parts = group.free, group.idle, group.held, group.pinned, group.condemned
        assert sum(parts) == group.total
        assert group.held == 1
    go_on.set()
    assert coming.result(PATIENCE).served.adapter == "d"
    small.engine.cancel(held.request_id)
    small.settle()


def test_a_cancelled_preload_is_withdrawn(small: Node) -> None:
    running = [small.ask(name, tokens=400).wait(tokens=1) for name in NAMES[:FEW]]
    waiting = small.engine.preload(T, "d")
    assert waiting.cancel()
    for answer in running:
        assert answer.tokens
    small.settle()
    assert "d" not in resident(small)


def stop_with_an_order_waiting(node: Node) -> Future[LoadedVersion]:
    for name in NAMES[:FEW]:
        node.ask(name, tokens=400).wait(tokens=1)
    waiting = node.engine.preload(T, "d")
    node.engine.pool_use().result(PATIENCE)
    node.engine.stop()
    return waiting


def test_stopping_answers_every_order_and_takes_no_more(small: Node) -> None:
    assert isinstance(error_of(stop_with_an_order_waiting(small)), Draining)
    with pytest.raises(Draining):
        small.engine.list_loaded()


def test_control_a_desk_that_forgets_its_orders_leaves_one_open(
    small: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrderDesk, "end", lambda self, error: None)
    assert not stop_with_an_order_waiting(small).done()


def test_when_the_engine_cannot_go_on_every_request_and_every_order_is_told(
    roomy: Node, monkeypatch: pytest.MonkeyPatch, step_audit: StepAudit
) -> None:
    running = roomy.ask("a", tokens=400).wait(tokens=1)
    draining = roomy.engine.unload(T, "a")
    fail: Callable[[Scheduler], None] = lambda self: 1 / 0  # noqa: E731
    monkeypatch.setattr(Scheduler, "schedule", fail)
    assert isinstance(running.error, EngineFailure)
    assert isinstance(error_of(draining), EngineFailure)
    wait_until(lambda: not roomy.engine.healthy(), within_s=PATIENCE)
    with pytest.raises(Draining):
        roomy.ask("b")
    with pytest.raises(Draining):
        roomy.engine.preload(T, "b")
    step_audit.expect_broken()


def test_orders_of_many_threads_beside_requests_are_all_answered(small: Node) -> None:
    truth = {name: small.ask(name, tokens=6).tokens for name in NAMES}
    answers: list[Future[Any]] = []
    asked = []

    def operate(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            name = rng.choice(NAMES)
            orders: list[Callable[[], Future[Any]]] = [
                lambda name=name: small.engine.preload(T, name),
                lambda name=name: small.engine.pin(T, f"{name}@v1"),
                lambda name=name: small.engine.pin(T, name),
                lambda name=name: small.engine.unpin(T, name),
                lambda name=name: small.engine.unpin(T, f"{name}@v1"),
                lambda name=name: small.engine.unload(T, name),
                lambda name=name: small.engine.unload(T, name, force=True),
                small.engine.list_loaded,
                small.engine.pool_use,
            ]
            answers.append(rng.choice(orders)())
            asked.append((name, small.ask(name, tokens=6, deadline_in=60.0)))

    threads = [threading.Thread(target=operate, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        error = answer.exception(PATIENCE)
        assert error is None or isinstance(error, NodeError)
    for name, request in asked:
        request.wait()
        if isinstance(getattr(request.events[-1], "error", None), AdapterUnloaded):
            continue
        assert request.tokens == truth[name]
    small.settle()


def test_holdings_tell_what_is_served_and_every_version_that_is_kept(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    modules = dict(node.card.modules)
    for number in (1, 2):
        folder = make_adapter(tmp_path / f"a{number}", modules, rank=4, seed=number)
        node.publish("a", folder, label=f"v{number}")
        assert node.ask("a", min_generation=number).tokens
    (held,) = node.engine.holdings().result(PATIENCE)
    assert (held.tenant, held.adapter, held.generation) == (T, "a", 2)
    assert {copy.version: copy.standing for copy in held.copies.values()} == {
        "v1": Standing.DEVICE,
        "v2": Standing.DEVICE,
    }
    assert held.copies[held.digest].version == "v2"
    node.engine.unload(T, "a@v2").result(PATIENCE)
    (held,) = node.engine.holdings().result(PATIENCE)
    assert (held.generation, held.digest) == (0, "")
    standings = {copy.version: copy.standing for copy in held.copies.values()}
    assert standings == {"v1": Standing.DEVICE, "v2": Standing.HOST}

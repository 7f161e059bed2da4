"""Every order of an operator is answered once, whatever else happens, and what is told is so."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from adapter_store.fleet import Standing
from inference_node.adapters.loader import Loader
from inference_node.adapters.reports import Target
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.order_desk import OrderDesk
from inference_node.engine.scheduler import Scheduler
from inference_node.errors import (
    AdapterNotFound,
    AdapterUnloaded,
    Draining,
    EngineFailure,
    InvalidRequest,
    NodeError,
    StaleNode,
)
from inference_node.residency import LoadedVersion, Tier, VersionState
from tests.adapter_store.waiting import wait_until
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.operated_node import FEW, NAMES, T, error_of, loaded, resident
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.step_audit import StepAudit
from tests.inference_node.tiny import make_adapter


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

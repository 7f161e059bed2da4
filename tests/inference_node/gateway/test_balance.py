"""Which node a request reaches, through a real Envoy."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from inference_node.client import Client, NodeUnreachable
from inference_node.errors import (
    AdapterCorrupt,
    DeadlineExpired,
    EngineFailure,
    NodeError,
    QueueFull,
    StoreDown,
)
from tests.adapter_store.waiting import wait_until
from tests.inference_node.gateway.fleet import (
    NODE,
    Edit,
    Gateway,
    LightNode,
    Load,
    light_nodes,
    running_gateway,
)
from tests.inference_node.rpc.scripted_engine import hangs

ADAPTERS = [f"adapter-{number}" for number in range(30)]
HOT = 24
"""Requests at once for one adapter."""


def owner(nodes: list[LightNode], adapter: str) -> LightNode:
    """The only node that was asked for it."""
    (found,) = [node for node in nodes if node.engine.asked[adapter]]
    return found


def test_every_request_of_an_adapter_reaches_the_same_node_whatever_version_it_names(
    gateway: Gateway, nodes: list[LightNode]
) -> None:
    with Client(gateway.address) as client:
        for reference in [*ADAPTERS, *ADAPTERS]:
            client.generate("x", adapter=reference)
            client.generate("x", adapter=f"{reference}@v3")
    owners = Counter(id(owner(nodes, adapter)) for adapter in ADAPTERS)
    assert all(node.engine.asked[f"{a}@v3"] == 2 for a in ADAPTERS for node in [owner(nodes, a)])
    assert len(owners) == len(nodes), "the ring gives each node a share"


@dataclass(frozen=True)
class ThousandNodes:
    """What Envoy says of its ring over so many."""

    points_each: int
    allocated: int
    """Bytes of the whole process."""


def ring_of_a_thousand(folder: Path, points: int | None) -> ThousandNodes:
    """Nobody listens: Envoy takes all for well that it does not check."""

    def unchecked(text: str) -> str:
        config = yaml.safe_load(text)
        nodes = config["static_resources"]["clusters"][0]
        del nodes["health_checks"]
        if points is not None:
            nodes["ring_hash_lb_config"]["minimum_ring_size"] = points
        return yaml.safe_dump(config)

    addresses = [f"127.0.{i // 250}.{i % 250 + 1}:9" for i in range(1_000)]
    with running_gateway(folder, addresses, edit=unchecked) as gateway:
        memory = json.loads(gateway.get("/memory", at=gateway.config.admin).body)
        each = gateway.metric("ring_hash_lb_min_hashes_per_host")
        return ThousandNodes(each, int(memory["allocated"]))


def spread_of_a_hot_adapter(folder: Path, nodes: list[LightNode], edit: Edit) -> list[int]:
    """How many of HOT simultaneous requests each node has, most first."""
    for node in nodes:
        node.engine.script = hangs
    with (
        running_gateway(folder, [node.address for node in nodes], edit=edit) as gateway,
        Client(gateway.address) as client,
        contextlib.ExitStack() as streams,
    ):
        for _ in range(HOT):
            stream = streams.enter_context(client.stream("x", adapter="hot"))
            assert next(iter(stream)) == "one "
        return sorted((node.engine.asked["hot"] for node in nodes), reverse=True)


def test_a_hot_adapter_spreads_and_no_node_has_much_more_than_its_share(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    most, *_, least = spread_of_a_hot_adapter(tmp_path, nodes, lambda text: text)
    assert most <= 1.25 * HOT / len(nodes) + 1
    assert least > 0


def test_a_thousand_nodes_have_many_points_each_and_the_ring_costs_little(
    envoy: Path, tmp_path: Path
) -> None:
    few, many = (ring_of_a_thousand(tmp_path, points) for points in (1_024, None))
    assert (few.points_each, many.points_each) == (2, 66)
    assert many.allocated - few.allocated < 8 * 2**20


def test_without_bounded_load_one_node_would_have_them_all(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    unbounded = "{hash_balance_factor: 125}"
    spread = spread_of_a_hot_adapter(tmp_path, nodes, lambda text: text.replace(unbounded, "{}"))
    assert spread == [HOT, 0, 0]


def test_a_node_that_is_not_well_is_left_out_until_it_is(
    gateway: Gateway, nodes: list[LightNode]
) -> None:
    gateway.ask("ada")
    sick = owner(nodes, "ada").engine

    def reached_by_a_request() -> bool:
        before = sick.asked["ada"]
        assert gateway.ask("ada").text
        return sick.asked["ada"] > before

    sick.alive = False
    wait_until(lambda: not reached_by_a_request())
    assert not any(reached_by_a_request() for _ in range(20))
    sick.alive = True
    wait_until(reached_by_a_request)
    assert all(reached_by_a_request() for _ in range(20)), "its adapters have come home"


def test_with_no_node_left_callers_and_balancers_are_told_at_once(
    gateway: Gateway, nodes: list[LightNode]
) -> None:
    assert gateway.get("/healthz").status == 200
    for node in nodes:
        node.engine.alive = False
    wait_until(lambda: gateway.get("/healthz").status == 503)

    def refused_for_want_of_nodes() -> bool:
        try:
            gateway.ask("ada")
        except NodeUnreachable as error:
            return "no healthy" in str(error)
        return False

    wait_until(refused_for_want_of_nodes)


def test_nodes_that_leave_lose_no_request(envoy: Path, tmp_path: Path) -> None:
    leaving = replace(NODE, drain_delay=1.5)
    with (
        light_nodes(3, leaving) as nodes,
        running_gateway(tmp_path, [node.address for node in nodes]) as gateway,
        Load(gateway.address, ADAPTERS) as load,
    ):
        for left, node in enumerate(nodes[:2]):
            load.goes_on(100)
            node.leave()
            wait_until(lambda: gateway.healthy() == 2 - left)  # noqa: B023
        load.goes_on(100)
    assert load.refused == []
    assert all(sum(node.engine.asked.values()) for node in nodes)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (StoreDown("away"), 3),
        (QueueFull("full", retry_after=1.0), 1),
        (EngineFailure("a bug"), 1),
        (AdapterCorrupt("damaged"), 1),
    ],
    ids=lambda value: getattr(value, "reason", str(value)),
)
def test_only_unavailable_is_tried_again_and_on_another_node(
    gateway: Gateway, nodes: list[LightNode], error: NodeError, tries: int
) -> None:
    for node in nodes:
        node.engine.refuses = error
    with pytest.raises(type(error)):
        gateway.ask("ada")
    assert sorted(node.engine.asked["ada"] for node in nodes) == [0] * (3 - tries) + [1] * tries


def test_one_node_without_its_store_is_made_up_for_by_another(
    gateway: Gateway, nodes: list[LightNode]
) -> None:
    gateway.ask("ada")
    owner(nodes, "ada").engine.refuses = StoreDown("away")
    assert gateway.ask("ada").text == "hello wörld"


def test_callers_cannot_widen_what_is_tried_again(gateway: Gateway, nodes: list[LightNode]) -> None:
    for node in nodes:
        node.engine.refuses = QueueFull("full", retry_after=1.0)
    with pytest.raises(QueueFull):
        gateway.ask("ada", **{"x-envoy-retry-grpc-on": "resource-exhausted"})
    assert sum(node.engine.asked["ada"] for node in nodes) == 1


def ejections(gateway: Gateway, nodes: list[LightNode]) -> int:
    """Nodes put aside after a hundred answers that are errors, and as many deadlines missed."""
    for error in (AdapterCorrupt("damaged"), EngineFailure("a bug"), StoreDown("away")):
        for node in nodes:
            node.engine.refuses = error
        for adapter in ADAPTERS:
            with pytest.raises(type(error)):
                gateway.ask(adapter)
    for node in nodes:
        node.engine.refuses, node.engine.script = None, hangs
    for adapter in ADAPTERS:
        with pytest.raises(DeadlineExpired):
            gateway.ask(adapter, timeout=0.02)
    return gateway.metric("outlier_detection_ejections_enforced_total")


def test_no_answer_puts_a_node_aside_so_one_broken_adapter_empties_no_fleet(
    gateway: Gateway, nodes: list[LightNode]
) -> None:
    assert ejections(gateway, nodes) == 0


def test_envoys_own_idea_of_errors_would_have_put_nodes_aside(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    def by_answers(text: str) -> str:
        return text.replace("enforcing_consecutive_5xx: 0", "enforcing_consecutive_5xx: 100")

    addresses = [node.address for node in nodes]
    with running_gateway(tmp_path, addresses, edit=by_answers) as gateway:
        assert ejections(gateway, nodes) > 0

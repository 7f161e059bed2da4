"""A tenant that floods a running engine does not keep others from being served."""

from __future__ import annotations

import pytest

from inference_node.engine import intake
from inference_node.engine.fairness import Fairness
from inference_node.errors import QueueFull
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.test_fairness import first_come_first_served
from tests.inference_node.harness import Answer, Node

FLOOD = 40


def flood_beside_one(node: Node) -> tuple[list[Answer], Answer]:
    """Many requests of one tenant, then one of another."""
    flood = [node.ask(tokens=12, tenant="crowd") for _ in range(FLOOD)]
    flood[0].wait(tokens=1)
    return flood, node.ask(tokens=4, tenant="other").wait()


def test_a_request_of_another_tenant_is_served_before_the_flood_is(start_tiny: StartTiny) -> None:
    node = start_tiny(max_rows=4)
    flood, _ = flood_beside_one(node)
    assert sum(answer.ended for answer in flood) < FLOOD // 2
    node.settle()


def test_control_first_come_first_served_serves_the_flood_first(
    start_tiny: StartTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fairness, "next", first_come_first_served)
    node = start_tiny(max_rows=4)
    flood, _ = flood_beside_one(node)
    assert sum(answer.ended for answer in flood) > FLOOD // 2
    node.settle()


def test_a_request_of_a_higher_priority_overtakes_those_in_line(start_tiny: StartTiny) -> None:
    node = start_tiny(max_rows=2)
    line = [node.ask(tokens=12) for _ in range(FLOOD)]
    line[0].wait(tokens=1)
    node.ask(tokens=4, priority=1).wait()
    assert sum(answer.ended for answer in line) < FLOOD // 2
    node.settle()


def send_until_refused(node: Node, tenant: str) -> int:
    """How many requests were taken."""
    for taken in range(1000):
        try:
            node.ask(tokens=400, tenant=tenant)
        except QueueFull:
            return taken
    raise AssertionError("the queue has no end")


def places_for_another(node: Node) -> int:
    """How many requests of another tenant are taken when a flood has been refused."""
    assert send_until_refused(node, "crowd")
    return send_until_refused(node, "other")


def test_a_flood_is_refused_while_the_queue_still_has_places_for_others(
    start_tiny: StartTiny,
) -> None:
    node = start_tiny(max_queue=45, max_rows=1)
    assert places_for_another(node) == 5
    node.engine.stop()


def test_control_without_the_share_a_flood_takes_the_whole_queue(
    start_tiny: StartTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "CROWD", 10**6)
    node = start_tiny(max_queue=45, max_rows=1)
    assert places_for_another(node) == 0
    node.engine.stop()


def test_a_tenant_alone_may_fill_a_small_queue(start_tiny: StartTiny) -> None:
    node = start_tiny(max_queue=8, max_rows=1)
    asked = [node.ask(tokens=4) for _ in range(8)]
    for answer in asked:
        assert answer.tokens
    node.settle()

"""Nodes tell of themselves in a real Redis under leases, and nothing outlives its teller."""

from __future__ import annotations

import pytest
from redis import Redis

from adapter_store.arms import ArmCount
from adapter_store.errors import FleetUnseen
from adapter_store.fleet import Standing
from adapter_store.notify import open_hints
from adapter_store.registry import (
    NODES,
    FleetRegistry,
    arms_key,
    holds_key,
    node_key,
    open_registry,
)
from tests.adapter_store.fleet_cards import card, digest, holding
from tests.adapter_store.waiting import wait_until

pytestmark = pytest.mark.services
TONE = holding("tone", 3, "v1", v1=Standing.DEVICE, v2=Standing.HOST)
VOICE = holding("voice", 1, "v1", v1=Standing.DEVICE)


@pytest.fixture
def registry(redis_client: Redis) -> FleetRegistry:
    return FleetRegistry(redis_client)


def test_what_nodes_tell_is_read_by_node_and_by_adapter(registry: FleetRegistry) -> None:
    for node in ("2", "1"):
        registry.tell(node, [TONE, VOICE], anew=True)
        assert registry.announce(card(node))
    registry.tell("2", [holding("tone", 4, "v2")], [VOICE.name])
    assert registry.nodes() == [card("1"), card("2")]
    assert registry.holdings("1") == [TONE, VOICE]
    assert registry.holdings("2") == [holding("tone", 4, "v2")]
    found = registry.holdings_of(["1", "2", "3"], "default", "tone")
    assert found == {"1": TONE, "2": holding("tone", 4, "v2")}


def test_how_versions_do_is_read_by_adapter_and_what_a_node_forgot_is_gone(
    registry: FleetRegistry, redis_client: Redis
) -> None:
    arms = {digest("v1"): ArmCount(3, tokens=60, seconds=1.5), digest("v2"): ArmCount(failed=1)}
    registry.tell_arms("1", {TONE.name: arms, VOICE.name: arms})
    assert registry.arms_of(["1", "2"], *TONE.name) == {"1": arms}
    registry.tell_arms("1", {}, [VOICE.name])
    assert registry.arms_of(["1"], *VOICE.name) == {}
    assert redis_client.hlen(arms_key("1")) == 1


def test_a_node_that_dies_is_gone_when_its_lease_ends_and_one_that_leaves_at_once(
    registry: FleetRegistry,
) -> None:
    for node in ("1", "2"):
        registry.tell(node, [TONE], anew=True, lease_s=0.2)
        registry.announce(card(node), lease_s=0.2)
    registry.leave("1")
    assert [one.id for one in registry.nodes()] == ["2"]
    assert registry.holdings("1") == []
    wait_until(lambda: registry.nodes() == [] and registry.holdings("2") == [])


def test_a_renewal_finds_out_that_redis_has_lost_what_was_told(
    registry: FleetRegistry, redis_client: Redis
) -> None:
    registry.tell("1", [TONE], anew=True)
    assert registry.announce(card("1"))
    redis_client.flushdb()
    assert not registry.announce(card("1"))
    registry.tell("1", [VOICE], anew=True)
    assert registry.holdings("1") == [VOICE]


def test_rubbish_in_redis_hides_no_node(registry: FleetRegistry, redis_client: Redis) -> None:
    registry.tell("1", [TONE], anew=True)
    registry.announce(card("1"))
    redis_client.zadd(NODES, {"junk": 1e12, "gone": 1e12})
    redis_client.set(node_key("junk"), '{"id": 3}')
    redis_client.hset(holds_key("1"), mapping={"no-slash": "{}", "default/voice": "[]"})
    assert registry.nodes() == [card("1")]
    assert registry.holdings("1") == [TONE]
    assert registry.holdings_of(["1"], "default", "voice") == {}


def test_ids_that_said_nothing_for_long_are_forgotten(redis_client: Redis) -> None:
    now = 1e9
    registry = FleetRegistry(redis_client, wall_clock=lambda: now)
    registry.announce(card("1"))
    now += 3601
    registry.announce(card("2"))
    assert redis_client.zrange(NODES, 0, -1) == ["2"]


def test_only_the_node_that_is_named_is_asked_to_fetch_ahead(
    registry: FleetRegistry, redis_url: str
) -> None:
    mine, other = open_hints(redis_url, node="1"), open_hints(redis_url, node="3")
    unnamed = open_hints(redis_url)
    listeners = (mine, other, unnamed)
    for listener in listeners:
        listener.poll(0)
    registry.ask_ahead(["1", "2"], "default", "tone", 4)
    heard = [listener.poll(5) for listener in listeners]
    assert [[hint.ahead for hint in hints] for hints in heard] == [[True], [False], [False]]


def test_a_redis_that_is_away_is_said_by_name() -> None:
    away = open_registry("redis://127.0.0.1:1/0")
    for call in (
        lambda: away.nodes(),
        lambda: away.announce(card("1")),
        lambda: away.tell("1", [TONE]),
        lambda: away.leave("1"),
        lambda: away.holdings("1"),
        lambda: away.ask_ahead(["1"], "default", "tone", 1),
    ):
        with pytest.raises(FleetUnseen):
            call()

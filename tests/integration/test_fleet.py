"""A node as the fleet sees it: what it has ready, how its versions do, and what Redis is to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapter_store.embedded import EmbeddedStack
from adapter_store.fleet import Holding
from adapter_store.registry import FleetRegistry, open_registry
from adapter_store.settings import REDIS_SERVICE
from inference_node.client import Client
from tests.adapter_store.waiting import wait_until
from tests.integration.asking import PROMPT, exactly
from tests.integration.node_process import NodeProcess
from tests.integration.site import Site


def held(registry: FleetRegistry, node: NodeProcess, name: str) -> Holding | None:
    """What the running node tells of an adapter."""
    (card,) = [card for card in registry.nodes() if card.address == node.address]
    return registry.holdings_of([card.id], "default", name).get(card.id)


def ready(registry: FleetRegistry, node: NodeProcess, name: str, digest: str) -> bool:
    told = held(registry, node, name)
    return told is not None and told.can_serve(digest)


def test_what_is_staged_is_ready_before_it_is_active_and_serves_after_one_record(
    site: Site, node: NodeProcess, client: Client, unseen: Callable[[], Path]
) -> None:
    registry = open_registry(site.endpoints.redis_url)
    site.publish("ahead", unseen(), label="v1")
    assert client.generate(PROMPT, adapter="ahead", stopping=exactly(1)).served.version == "v1"
    staged = site.adapter_store("stage", str(unseen()), "--name", "ahead", "--version", "v2")
    wait_until(lambda: ready(registry, node, "ahead", staged["digest"]), within_s=30)
    done = site.adapter_store("activate", "ahead")
    assert done["nodes"]["ready"] == [node.address]
    assert done["nodes"]["serving"] == 1
    assert client.generate(PROMPT, adapter="ahead", stopping=exactly(1)).served.version == "v2"


def test_an_adapter_nobody_holds_is_fetched_by_the_node_that_is_asked(
    site: Site, node: NodeProcess, client: Client, unseen: Callable[[], Path]
) -> None:
    registry = open_registry(site.endpoints.redis_url)
    staged = site.adapter_store("stage", str(unseen()), "--name", "brand-new")
    wait_until(lambda: ready(registry, node, "brand-new", staged["digest"]), within_s=30)
    site.adapter_store("activate", "brand-new")
    answer = client.generate(PROMPT, adapter="brand-new", stopping=exactly(1))
    assert answer.served.digest == staged["digest"]


def test_both_arms_of_a_split_are_counted_as_their_callers_were_answered(
    site: Site, node: NodeProcess, client: Client, unseen: Callable[[], Path]
) -> None:
    registry = open_registry(site.endpoints.redis_url)
    first = site.publish("halves", unseen(), label="v1")
    second = site.publish("halves", unseen(), label="v2")
    site.adapter_store("split", "halves", "v1=50", "v2=50")
    got = [
        client.generate(PROMPT, adapter="halves", affinity_key=f"user{n}", stopping=exactly(2))
        for n in range(20)
    ]
    versions = [answer.served.digest for answer in got]
    (card,) = [card for card in registry.nodes() if card.address == node.address]

    def told() -> dict[str, int]:
        arms = registry.arms_of([card.id], "default", "halves").get(card.id, {})
        return {digest: count.completed for digest, count in arms.items()}

    expected = {digest: versions.count(digest) for digest in (first.vdig, second.vdig)}
    assert min(expected.values()) > 0
    wait_until(lambda: told() == expected, within_s=30)


def test_a_node_without_redis_serves_on_and_is_seen_again_when_it_is_back(
    site: Site,
    node: NodeProcess,
    client: Client,
    unseen: Callable[[], Path],
    own_services: EmbeddedStack,
) -> None:
    site.publish("unseen", unseen(), label="v1")
    own_services.kill(REDIS_SERVICE)
    try:
        answer = client.generate(PROMPT, adapter="unseen", stopping=exactly(1))
        assert answer.served.version == "v1"
    finally:
        own_services.restart(REDIS_SERVICE)
    registry = open_registry(site.endpoints.redis_url)

    def seen() -> bool:
        return any(card.address == node.address for card in registry.nodes())

    wait_until(seen, within_s=30)
    wait_until(lambda: ready(registry, node, "unseen", answer.served.digest), within_s=30)

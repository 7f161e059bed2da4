"""Publishing while a node serves: nobody changes version mid-answer, everybody after gets the new.

The node of these tests looks at the store by itself every ten minutes only, so what it learns
sooner it learnt from a hint; without Redis it looks twice a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from adapter_store.embedded import EmbeddedStack
from adapter_store.settings import REDIS_SERVICE
from inference_node.client import Client
from tests.adapter_store.waiting import wait_until
from tests.integration.asking import PROMPT, begin, exactly, wait_idle
from tests.integration.conftest import Truth
from tests.integration.site import Site

LONG = 400
SWAPS = 10


def version(client: Client, adapter: str) -> str:
    """What a request that asks for nothing special is served."""
    return client.generate(PROMPT, adapter=adapter, stopping=exactly(1)).served.version


def test_a_stream_ends_on_its_version_and_min_generation_gets_the_new_one(
    site: Site, client: Client, voices: list[Path], truth: Truth
) -> None:
    site.publish("swap", voices[0], label="v1")
    stream = begin(client, "swap", tokens=LONG)
    published = site.publish("swap", voices[1], label="v2")
    after = client.generate(
        PROMPT, adapter="swap", stopping=exactly(16), min_generation=published.gen
    )
    assert client.model_info().running == 1, "the swap must happen while the stream runs"
    assert (after.served.version, after.served.generation) == ("v2", 2)
    assert after.served.digest == published.vdig
    assert after.token_ids == truth(voices[1], PROMPT, 16)
    assert stream.result.served.version == "v1"
    assert stream.result.token_ids == truth(voices[0], PROMPT, LONG)
    wait_idle(client)


def test_a_node_learns_of_a_version_by_its_hint_and_not_before(
    site: Site, client: Client, voices: list[Path]
) -> None:
    site.publish("hinted", voices[0], label="v1")
    assert version(client, "hinted") == "v1"
    site.publish("flag", voices[0], label="v1")
    assert version(client, "flag") == "v1"
    quiet = site.publish("hinted", voices[1], label="v2", silently=True)
    site.publish("flag", voices[1], label="v2")
    wait_until(lambda: version(client, "flag") == "v2")
    assert version(client, "hinted") == "v1", "control: nobody told the node"
    site.announce("hinted", quiet.gen)
    wait_until(lambda: version(client, "hinted") == "v2")


def test_a_rollback_brings_the_old_content_back_under_a_higher_generation(
    site: Site, client: Client, voices: list[Path]
) -> None:
    site.publish("back", voices[0], label="v1")
    first = client.generate(PROMPT, adapter="back", stopping=exactly(16))
    site.publish("back", voices[1], label="v2")
    rolled = site.adapter_store("rollback", "back", "--to", "v1")
    again = client.generate(
        PROMPT, adapter="back", stopping=exactly(16), min_generation=rolled["generation"]
    )
    assert (again.served.version, again.served.generation) == ("v1", 3)
    assert again.served.digest == first.served.digest == rolled["digest"]
    assert again.token_ids == first.token_ids


def test_swaps_under_a_stream_answer_every_request_with_the_version_it_names(
    site: Site, client: Client, voices: list[Path], truth: Truth
) -> None:
    truths = {}
    for folder in voices:
        vdig = site.publish(f"alone-{folder.name}", folder, label="v1").vdig
        truths[vdig] = truth(folder, PROMPT, 24)
    site.publish("busy", voices[-1], label="v0")
    with begin(client, "busy") as stream:
        for swap, folder in zip(range(SWAPS), itertools.cycle(voices), strict=False):
            gen = site.publish("busy", folder, label=folder.name).gen
            answer = client.generate(
                PROMPT, adapter="busy", stopping=exactly(4), min_generation=gen
            )
            assert answer.token_ids == truths[answer.served.digest][:4], f"swap {swap}"
            assert answer.served.generation == gen
        assert client.model_info().running == 1, "all of that happened beside it"
        assert stream.served.version == "v0"
    wait_idle(client)


def test_without_redis_publishing_goes_on_and_the_node_polls(
    site: Site,
    client: Client,
    unseen: Callable[[], Path],
    own_services: EmbeddedStack,
) -> None:
    site.publish("polled", unseen(), label="v1")
    assert version(client, "polled") == "v1"
    own_services.kill(REDIS_SERVICE)
    try:
        site.publish("polled", unseen(), label="v2")
        wait_until(lambda: version(client, "polled") == "v2", within_s=20)
    finally:
        own_services.restart(REDIS_SERVICE)
    site.publish("polled", unseen(), label="v3")
    wait_until(lambda: version(client, "polled") == "v3", within_s=20)

"""A caller who leaves or whose time is up costs the node nothing more.

Each test keeps another stream running that began no later and lasts as long: when the first one's
place is free while the other still runs, it was not free because the answer was complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_node.client import Client
from inference_node.errors import DeadlineExpired
from tests.adapter_store.waiting import wait_until
from tests.integration.asking import ENDLESS, PROMPT, begin, exactly, wait_idle
from tests.integration.site import NODE_SETTINGS, Site

ROWS = int(NODE_SETTINGS["LORAPOOL_MAX_ROWS"])


@pytest.fixture
def beside(site: Site, client: Client, voices: list[Path]) -> Iterator[None]:
    """Another caller's stream, all along; afterwards nothing may be left of anyone."""
    for index, folder in enumerate(voices[:2]):
        site.publish(f"leaver{index}", folder, label="v1")
    with begin(client, "leaver0") as other:
        yield
        assert next(iter(other)), "it runs on"
    wait_idle(client)
    pool = client.model_info().pool
    assert client.generate(PROMPT, adapter="leaver1", stopping=exactly(4)).served.version == "v1"
    assert client.model_info().pool == pool


def busy(client: Client) -> tuple[int, int, int]:
    info = client.model_info()
    return info.running, info.waiting, info.pool.leases


@pytest.mark.usefixtures("beside")
def test_a_cancelled_stream_stops_decoding_and_drops_its_lease(client: Client) -> None:
    leaver = begin(client, "leaver1")
    assert busy(client) == (2, 0, 2)
    leaver.cancel()
    wait_until(lambda: busy(client) == (1, 0, 1))


@pytest.mark.usefixtures("beside")
def test_a_deadline_stops_decoding_and_drops_its_lease(client: Client) -> None:
    leaver = client.stream(PROMPT, adapter="leaver1", stopping=ENDLESS, timeout=0.7)
    assert next(iter(leaver))
    with pytest.raises(DeadlineExpired):
        _ = leaver.result
    wait_until(lambda: busy(client) == (1, 0, 1))


@pytest.mark.usefixtures("beside")
def test_a_deadline_passes_in_the_queue_too(client: Client) -> None:
    with contextlib.ExitStack() as everyone:
        for _ in range(ROWS - 1):
            everyone.enter_context(begin(client, "leaver0"))
        assert busy(client) == (ROWS, 0, ROWS)
        queued = client.stream(PROMPT, adapter="leaver1", stopping=ENDLESS, timeout=0.7)
        assert queued.served.adapter == "leaver1"
        assert busy(client) == (ROWS, 1, ROWS + 1)
        with pytest.raises(DeadlineExpired):
            next(iter(queued))
        wait_until(lambda: busy(client) == (ROWS, 0, ROWS))

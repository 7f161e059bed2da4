"""Envoy before three real nodes: where adapters come to lie, and what a node's end costs."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from inference_node.client import Client, NodeUnreachable
from tests.adapter_store.waiting import wait_until
from tests.inference_node.gateway.fleet import Gateway, Load, running_gateway
from tests.integration.asking import PROMPT, begin, exactly
from tests.integration.conftest import Truth
from tests.integration.node_process import NodeProcess
from tests.integration.site import Site

ADAPTERS = 6
TOKENS = 8


@pytest.fixture(scope="module")
def nodes(site: Site, node_process: NodeProcess) -> Iterator[list[NodeProcess]]:
    """The session's node and two more; tests end only those, each another."""
    others = [beside(site, "second"), beside(site, "third")]
    try:
        for node in (node_process, *others):
            if not node.is_running():
                node.start()
        yield [node_process, *others]
    finally:
        for node in others:
            node.kill()


def beside(site: Site, name: str) -> NodeProcess:
    """One more node, with a log of its own; on one thread, since they share the cores."""
    node = site.node()
    environment = {**node.environment, "OMP_NUM_THREADS": "1"}
    return replace(node, environment=environment, folder=site.folder / name)


@pytest.fixture
def gateway(envoy: Path, nodes: list[NodeProcess], tmp_path: Path) -> Iterator[Gateway]:
    running = [node.address for node in nodes if node.is_running()]
    with running_gateway(tmp_path, running) as gateway:
        yield gateway


def residents(node: NodeProcess) -> int:
    with node.client() as client:
        return client.model_info().pool.resident


def generated(node: NodeProcess) -> int:
    with node.client() as client:
        return client.model_info().generated_tokens


def owner(gateway: Gateway, nodes: list[NodeProcess], adapter: str) -> NodeProcess:
    """The node that answers for it."""
    before = {node.address: generated(node) for node in nodes if node.is_running()}
    assert gateway.ask(adapter).text
    (found,) = [n for n in nodes if n.is_running() and generated(n) > before[n.address]]
    return found


def test_each_adapter_is_loaded_on_one_node_and_answers_as_on_any(
    site: Site,
    gateway: Gateway,
    nodes: list[NodeProcess],
    unseen: Callable[[], Path],
    truth: Truth,
) -> None:
    before = [residents(node) for node in nodes]
    with Client(gateway.address) as client:
        for number in range(ADAPTERS):
            folder = unseen()
            site.publish(f"shared{number}", folder, label="v1")
            for _ in range(3):
                answer = client.generate(
                    PROMPT, adapter=f"shared{number}", stopping=exactly(TOKENS)
                )
                assert answer.token_ids == truth(folder, PROMPT, TOKENS)
    new = [residents(node) - count for node, count in zip(nodes, before, strict=True)]
    assert sum(new) == ADAPTERS, f"some adapter is on several nodes: {new}"


def test_a_node_that_is_told_to_leave_costs_no_caller_anything(
    site: Site, gateway: Gateway, nodes: list[NodeProcess], voices: list[Path]
) -> None:
    names = [f"stays{number}" for number in range(ADAPTERS)]
    for name in names:
        site.publish(name, voices[0], label="v1")
    leaving = nodes[1]
    with Load(gateway.address, names, threads=2) as load:
        load.goes_on(10)
        leaving.terminate()
        assert leaving.exit_code() == 0
        load.goes_on(10)
    assert load.refused == []


def test_what_may_have_ended_a_node_is_given_to_no_other_and_what_was_not_sent_is(
    site: Site, gateway: Gateway, nodes: list[NodeProcess], voices: list[Path]
) -> None:
    dying, spared = nodes[2], [node for node in nodes[:2] if node.is_running()]
    name = adapter_of(site, gateway, nodes, dying, voices[1])
    with Client(gateway.address) as client, ThreadPoolExecutor(1) as thread:
        stream = begin(client, name)
        untouched = [generated(node) for node in spared]
        assert dying.process is not None
        dying.process.send_signal(signal.SIGSTOP)
        unanswered = thread.submit(gateway.ask, name)
        wait_until(lambda: gateway.metric("upstream_rq_active") == 2)
        dying.kill()
        for ended in (lambda: stream.result, unanswered.result):
            with pytest.raises(NodeUnreachable):
                ended()
        assert [generated(node) for node in spared] == untouched
        assert client.generate(PROMPT, adapter=name, stopping=exactly(4)).served.adapter == name
    wait_until(lambda: gateway.healthy() == len(spared))


def adapter_of(
    site: Site, gateway: Gateway, nodes: list[NodeProcess], node: NodeProcess, folder: Path
) -> str:
    """A new adapter that the ring gives to `node`."""
    for number in itertools.count():
        name = f"owned{number}"
        site.publish(name, folder, label="v1")
        if owner(gateway, nodes, name) is node:
            break
    return name

"""Clients over several real servers, without a proxy: one node for each adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from inference_node.client import Access, AsyncClient, CallFailed, Client, NodeUnreachable, ring
from inference_node.client.ring import target
from inference_node.errors import BadConfiguration
from tests.inference_node.gateway.fleet import NODE, LightNode, light_nodes
from tests.inference_node.rpc.authority import Authority

ADAPTERS = [f"adapter-{number}" for number in range(20)]


@pytest.fixture
def nodes() -> Iterator[list[LightNode]]:
    with light_nodes(2) as nodes:
        yield nodes


def asked(nodes: list[LightNode], adapter: str) -> list[int]:
    return [node.engine.asked[adapter] for node in nodes]


def assert_each_has_one_node(nodes: list[LightNode], times: int) -> None:
    for adapter in ADAPTERS:
        assert sorted(asked(nodes, adapter)) == [0, times]
    assert all(len(node.engine.asked) > 1 for node in nodes), "each node has a share"


def test_each_adapter_has_a_node_of_its_own(nodes: list[LightNode]) -> None:
    with Client([node.address for node in nodes]) as client:
        for adapter in ADAPTERS * 3:
            assert client.generate("x", adapter=adapter).text == "hello wörld"
            assert "".join(client.stream("x", adapter=adapter)) == "hello wörld"
    assert_each_has_one_node(nodes, 6)


async def test_the_same_for_asyncio_and_for_another_client(nodes: list[LightNode]) -> None:
    addresses = [node.address for node in nodes]
    for listed in (addresses, addresses[::-1]):
        async with AsyncClient(listed) as client:
            await asyncio.gather(*(client.generate("x", adapter=each) for each in ADAPTERS))
    assert_each_has_one_node(nodes, 2)


def test_grpc_would_refuse_every_call_if_it_were_not_told_to_heed_the_header(
    nodes: list[LightNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "switch_on", lambda: None)
    monkeypatch.delenv("GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", raising=False)
    with (
        Client([node.address for node in nodes]) as client,
        pytest.raises(CallFailed, match="hash attribute"),
    ):
        client.generate("x", adapter="ada")


def test_the_base_model_is_asked_for_anywhere(nodes: list[LightNode]) -> None:
    with Client([node.address for node in nodes]) as client:
        for _ in range(40):
            client.generate("x")
    assert all(count > 0 for count in asked(nodes, ""))


def test_a_node_that_leaves_hands_over_and_nobody_notices(nodes: list[LightNode]) -> None:
    with Client([node.address for node in nodes]) as client:
        for adapter in ADAPTERS:
            client.generate("x", adapter=adapter)
        nodes[0].leave()
        for adapter in ADAPTERS:
            client.generate("x", adapter=adapter)
    assert sum(nodes[1].engine.asked.values()) > len(ADAPTERS)


def test_nodes_in_tls_are_known_by_the_name_that_all_of_them_bear(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("node.lorapool")
    with light_nodes(2, replace(NODE, tls=files)) as nodes:
        addresses = [node.address for node in nodes]
        named = Access(ca_file=authority.file, server_name="node.lorapool")
        with Client(addresses, access=named) as client:
            for adapter in ADAPTERS:
                client.generate("x", adapter=adapter)
        strangers = Client(addresses, access=replace(named, server_name="other"))
        with strangers, pytest.raises(NodeUnreachable):
            strangers.generate("x")
        with pytest.raises(BadConfiguration, match="certificates"):
            Client(addresses, access=Access(ca_file=authority.file))
    assert_each_has_one_node(nodes, 1)


def test_a_token_is_not_sent_to_the_one_node_that_is_elsewhere() -> None:
    with pytest.raises(BadConfiguration, match=r"10\.0\.0\.9:1 in the clear"):
        Client(["127.0.0.1:1", "10.0.0.9:1"], access=Access(token="t"))


@pytest.mark.parametrize(
    ("addresses", "named"),
    [
        (["127.0.0.1:1", "127.0.0.1:2"], "ipv4:127.0.0.1:1,127.0.0.1:2"),
        (["[::1]:1", "[::1]:2"], "ipv6:[::1]:1,[::1]:2"),
        (["lorapool-nodes:50051"], "dns:///lorapool-nodes:50051"),
    ],
)
def test_nodes_are_named_as_grpc_names_them(addresses: list[str], named: str) -> None:
    assert target(addresses) == named


@pytest.mark.parametrize(
    "addresses", [[], ["a:1", "b:1"], ["127.0.0.1:1", "[::1]:1"], ["127.0.0.1"], ["unix:/x"]]
)
def test_what_cannot_be_one_list_is_refused(addresses: list[str]) -> None:
    with pytest.raises(BadConfiguration):
        target(addresses)

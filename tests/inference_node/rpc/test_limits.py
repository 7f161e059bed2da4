"""Where the node may listen."""

from __future__ import annotations

import pytest

from inference_node.addresses import is_loopback
from inference_node.errors import BadConfiguration
from inference_node.rpc.limits import ServerConfig


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "127.9.9.9:80", "[::1]:50051", "localhost:1", "unix:/tmp/s"]
)
def test_loopback_addresses_need_no_leave(address: str) -> None:
    assert is_loopback(address)
    assert ServerConfig(listen=address).listen == address


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "node.local:1"])
def test_an_address_others_reach_is_refused_unless_asked_for(address: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        ServerConfig(listen=address)
    assert "LORAPOOL_INSECURE" in caught.value.hint
    assert ServerConfig(listen=address, insecure=True).listen == address


@pytest.mark.parametrize("address", ["", "50051", "127.0.0.1", ":1", "127.0.0.1:x", "h:70000"])
def test_what_is_no_address_is_refused_by_the_name_of_its_variable(address: str) -> None:
    with pytest.raises(BadConfiguration):
        is_loopback(address)
    with pytest.raises(BadConfiguration, match="LORAPOOL_LISTEN"):
        ServerConfig(listen=address)
    if address:
        with pytest.raises(BadConfiguration, match="LORAPOOL_ADMIN_LISTEN"):
            ServerConfig(admin_listen=address)


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BadConfiguration):
        ServerConfig(max_request_seconds=0)
    with pytest.raises(BadConfiguration):
        ServerConfig(drain_seconds=-1)
    with pytest.raises(BadConfiguration):
        ServerConfig(max_concurrent_rpcs=0)

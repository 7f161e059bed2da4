"""Scrapes are answered where the operator said, and nothing else is."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from inference_node.cli.settings import load_settings
from inference_node.errors import BadConfiguration
from inference_node.telemetry.listener import SCRAPES, Listener
from tests.adapter_store.waiting import wait_until


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener("127.0.0.1:0", CollectorRegistry())
    listener.start()
    yield listener
    listener.stop()


def status(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_only_the_one_path_is_answered(listener: Listener) -> None:
    assert status(listener.address, "/metrics") == 200
    assert status(listener.address, "/metrics?x=1") == 200
    assert [status(listener.address, path) for path in ("/", "/metrics/x", "/etc")] == [404] * 3


def test_callers_that_say_nothing_do_not_take_a_thread_each(listener: Listener) -> None:
    host, _, port = listener.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(SCRAPES)]
    free = listener._server._free
    wait_until(lambda: free._value == 0, within_s=10)  # type: ignore[attr-defined]
    with socket.create_connection((host, int(port)), timeout=10) as one_more:
        assert one_more.recv(1) == b""
    for connection in silent:
        connection.close()
    wait_until(lambda: free._value == SCRAPES, within_s=10)  # type: ignore[attr-defined]
    assert status(listener.address, "/metrics") == 200


def test_an_address_that_is_taken_is_refused_by_the_name_of_its_variable(
    listener: Listener,
) -> None:
    with pytest.raises(BadConfiguration, match="cannot listen") as refused:
        Listener(listener.address, CollectorRegistry())
    assert "LORAPOOL_METRICS_LISTEN" in refused.value.hint


@pytest.mark.parametrize("listen", ["unix:/x", "9464", "127.0.0.1:http", ":1"])
def test_what_is_no_address_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, listen: str
) -> None:
    monkeypatch.setenv("LORAPOOL_METRICS_LISTEN", listen)
    with pytest.raises(BadConfiguration, match="LORAPOOL_METRICS_LISTEN"):
        load_settings().metrics_address()


def test_scrapes_from_elsewhere_need_somebody_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().metrics_address() == ""
    monkeypatch.setenv("LORAPOOL_METRICS_LISTEN", "0.0.0.0:9464")
    with pytest.raises(BadConfiguration, match="reachable from other machines"):
        load_settings().metrics_address()
    monkeypatch.setenv("LORAPOOL_METRICS_INSECURE", "1")
    assert load_settings().metrics_address() == "0.0.0.0:9464"

"""Retries, affinity and monotonic reads of both clients, against the real server."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from inference_node import errors
from inference_node.client import AsyncClient, Client
from inference_node.client.failures import CallFailed, NodeUnreachable, to_error
from inference_node.client.generations import Generations
from inference_node.request import Failed, OnEvent, Request, Served, Started
from tests.inference_node.client_calls import noted_metadata
from tests.inference_node.rpc.running_node import running_node
from tests.inference_node.rpc.scripted_engine import ScriptedEngine, says, served


def test_a_call_that_lost_its_node_behind_a_gateway_may_be_asked_again() -> None:
    def lost(text: str) -> errors.NodeError:
        nothing = grpc.aio.Metadata()
        return to_error(
            grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, details=text)
        )

    assert isinstance(lost("Received RST_STREAM with error code 2"), NodeUnreachable)
    assert isinstance(lost("something else"), CallFailed), "the control"


class Attempts:
    """An engine's script that fails the first times, and when it was asked."""

    def __init__(self, error: errors.NodeError, *, times: int, begun: bool = False) -> None:
        self.at: list[float] = []
        self._error = error
        self._times = times
        self._begun = begun

    def __call__(self, request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
        self.at.append(time.monotonic())
        if len(self.at) > self._times:
            says("at last")(request, emit, cancelled)
            return
        if self._begun:
            emit(Started(served(request)))
        emit(Failed(self._error, None))


def test_an_unavailable_node_is_asked_again_when_it_says_so(
    address: str, engine: ScriptedEngine
) -> None:
    engine.script = attempts = Attempts(errors.StoreDown("away", retry_after=0.5), times=2)
    with Client(address) as client:
        assert client.generate("hi").text == "at last"
        assert list(client.stream("hi")) == ["at last"]
    gaps = [later - sooner for sooner, later in zip(attempts.at, attempts.at[1:3], strict=False)]
    # The client's own first wait would be at most 0.1 s.
    assert all(0.45 < gap < 5 for gap in gaps)
    assert len(attempts.at) == 4


def test_a_node_that_stays_unavailable_is_left_alone_after_four_attempts(
    address: str, engine: ScriptedEngine
) -> None:
    engine.script = attempts = Attempts(errors.StoreDown("away", retry_after=0.01), times=99)
    with Client(address) as client, pytest.raises(errors.StoreDown) as caught:
        client.generate("hi")
    assert len(attempts.at) == 4
    assert (caught.value.reason, caught.value.retry_after) == ("STORE_UNAVAILABLE", 0.01)


@pytest.mark.parametrize(
    "error",
    [errors.QueueFull("full", retry_after=0.01), errors.PoolFull("full", retry_after=0.01)],
    ids=["queue", "pool"],
)
def test_whether_to_come_back_to_a_full_node_is_the_callers_to_decide(
    address: str, engine: ScriptedEngine, error: errors.NodeError
) -> None:
    engine.script = attempts = Attempts(error, times=1)
    with Client(address) as client, pytest.raises(type(error)) as caught:
        client.generate("hi")
    assert (len(attempts.at), caught.value.retry_after) == (1, 0.01)


def test_what_has_begun_to_be_answered_is_not_asked_again(
    address: str, engine: ScriptedEngine
) -> None:
    down = errors.StoreDown("away", retry_after=0.01)
    engine.script = attempts = Attempts(down, times=9, begun=True)
    with Client(address) as client:
        with pytest.raises(errors.StoreDown):
            client.generate("hi")
        with pytest.raises(errors.StoreDown):
            list(client.stream("hi"))
    assert len(attempts.at) == 2


async def test_a_request_says_in_a_header_which_adapter_it_belongs_to(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = noted_metadata(monkeypatch)
    with running_node(engine) as address:
        with Client(address) as client:
            client.generate("hi", adapter="ada@v3")
            list(client.stream("hi", adapter="bob"))
            client.generate("hi")
            with pytest.raises(errors.InvalidRequest):
                client.generate("hi", adapter="naïve\n")
        async with AsyncClient(address) as asynchronous:
            await asynchronous.generate("hi", adapter=f"ada@sha256:{'a' * 64}")
            await asynchronous.stream("hi", adapter="bob@v1").finish()
    sent = [metadata.get("x-adapter-id") for metadata in seen]
    assert sent == ["ada", "bob", None, None, "ada", "bob"]


def least(engine: ScriptedEngine) -> list[int]:
    """The `min_generation` of every request so far."""
    return [request.min_generation for request in engine.submitted]


async def test_a_monotonic_client_never_asks_for_less_than_it_has_seen(
    address: str, engine: ScriptedEngine
) -> None:
    with Client(address, monotonic=True) as client:
        client.generate("hi", adapter="ada")
        client.generate("hi", adapter="ada")
        client.generate("hi", adapter="ada", min_generation=9)
        client.generate("hi", adapter="ada@v3")
        client.generate("hi", adapter="bob", tenant="acme")
        list(client.stream("hi", adapter="bob", tenant="acme"))
        client.generate("hi")
    assert least(engine) == [0, 7, 9, 0, 0, 7, 0]
    engine.submitted.clear()
    async with AsyncClient(address, monotonic=True) as asynchronous:
        await asynchronous.stream("hi", adapter="ada").finish()
        await asynchronous.stream("hi", adapter="ada").started()
        await asynchronous.generate("hi", adapter="ada")
    assert least(engine) == [0, 7, 7]


def test_a_client_that_was_not_asked_to_be_is_not_monotonic(
    address: str, engine: ScriptedEngine
) -> None:
    with Client(address) as client:
        client.generate("hi", adapter="ada")
        client.generate("hi", adapter="ada")
    assert least(engine) == [0, 0]


def test_what_was_seen_only_rises_and_an_older_version_by_name_lowers_nothing() -> None:
    seen = Generations()
    seen.note("ada", Served("default", "ada", "v2", 5, "d"))
    seen.note("ada", Served("default", "ada", "v1", 3, "d"))
    seen.note("ada@v9", Served("default", "ada", "v9", 9, "d"))
    seen.note("", Served("default", "", "", 0, ""))
    assert seen.at_least("", "ada", 0) == 5
    assert seen.at_least("default", "ada", 6) == 6
    assert seen.at_least("other", "ada", 0) == 0
    assert seen.at_least("", "ada@v1", 0) == 0

"""Streams are opened again until they have begun, and every one of them ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from inference_node import errors
from inference_node.addresses import PUSHBACK_HEADER
from inference_node.client import AsyncClient, Client, link
from inference_node.client.retries import ATTEMPTS, METHOD_CONFIG, Attempts
from inference_node.errors import NodeError
from inference_node.request import Failed, OnEvent, Request
from tests.inference_node.rpc.scripted_engine import ScriptedEngine, says

DEADLINE_S = 1.0
STREAMS = 16
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""An HTTP/2 frame: what makes a client believe that it is connected."""


def failure(code: grpc.StatusCode, **trailers: str) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*trailers.items())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing)


def pushed_back(milliseconds: str) -> grpc.aio.AioRpcError:
    return failure(grpc.StatusCode.UNAVAILABLE, **{PUSHBACK_HEADER: milliseconds})


def test_a_stream_is_opened_four_times_at_most_and_waits_longer_each_time() -> None:
    attempts = Attempts(60.0, lambda: 0.0)
    pauses = [attempts.pause(failure(grpc.StatusCode.UNAVAILABLE)) for _ in range(ATTEMPTS)]
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4), strict=False):
        assert pause is not None
        assert 0 <= pause <= longest
    assert pauses[-1] is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pushed_back("250"), 0.25),
        (pushed_back("-1"), None),
        (pushed_back("soon"), None),
        (pushed_back("5000"), None),
        (failure(grpc.StatusCode.RESOURCE_EXHAUSTED, **{PUSHBACK_HEADER: "250"}), None),
        (failure(grpc.StatusCode.INTERNAL), None),
    ],
    ids=["so soon", "never", "no number", "after the deadline", "full", "broken"],
)
def test_a_node_says_when_it_is_asked_again(
    error: grpc.aio.AioRpcError, expected: float | None
) -> None:
    assert Attempts(5.0, lambda: 0.0).pause(error) == expected


class Away:
    """An engine's script: the store is away for the first requests."""

    def __init__(self, times: int, *, retry_after: float = 0.01) -> None:
        self.asked = 0
        self._times = times
        self._error = errors.StoreDown("away", retry_after=retry_after)

    def __call__(self, request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
        self.asked += 1
        if self.asked > self._times:
            says("at last")(request, emit, cancelled)
        else:
            emit(Failed(self._error, None))


async def test_streams_of_both_clients_are_opened_until_they_begin(
    address: str, engine: ScriptedEngine
) -> None:
    async with AsyncClient(address) as client:
        engine.script = away = Away(2)
        assert (await client.stream("hi").finish()).text == "at last"
        assert away.asked == 3
        engine.script = away = Away(99)
        with pytest.raises(errors.StoreDown):
            await client.stream("hi").started()
        assert away.asked == ATTEMPTS
    engine.script = away = Away(99)
    with Client(address) as client, pytest.raises(errors.StoreDown):
        _ = client.stream("hi").served
    assert away.asked == ATTEMPTS


async def test_a_stream_that_is_cancelled_is_not_opened_again(
    address: str, engine: ScriptedEngine
) -> None:
    engine.script = away = Away(99, retry_after=30.0)
    with Client(address) as client, ThreadPoolExecutor(1) as pool:
        stream = client.stream("hi", timeout=60)
        reading = pool.submit(lambda: stream.served)
        while not away.asked:
            await asyncio.sleep(0.01)
        stream.cancel()
        with pytest.raises(NodeError):
            reading.result(timeout=10)
    assert away.asked == 1
    async with AsyncClient(address) as asynchronous:
        opening = asynchronous.stream("hi", timeout=60)
        started = asyncio.create_task(opening.started())
        while away.asked < 2:
            await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(NodeError):
            await asyncio.wait_for(started, 10)
    assert away.asked == 2


@contextmanager
def flapping_listener() -> Iterator[str]:
    """Takes connections, says nothing on them, and resets them with whatever was asked."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]

    def flap() -> None:
        while not done.is_set():
            taken = []
            with socket.create_server(("127.0.0.1", port)) as server:
                server.settimeout(0.02)
                until = time.monotonic() + 0.3
                while time.monotonic() < until:
                    try:
                        connection, _ = server.accept()
                    except TimeoutError:
                        continue
                    connection.sendall(EMPTY_SETTINGS)
                    taken.append(connection)
            for connection in taken:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()
            done.wait(0.1)

    flapper = threading.Thread(target=flap)
    flapper.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        done.set()
        flapper.join()


def streams_that_never_end() -> int:
    """How many of STREAMS callers, each streaming for a while, are held far past a deadline."""
    with flapping_listener() as address, Client(address) as client:
        stop = time.monotonic() + 2 * DEADLINE_S

        def caller() -> None:
            while time.monotonic() < stop:
                with contextlib.suppress(NodeError):
                    list(client.stream("hi", timeout=DEADLINE_S))

        threads = [threading.Thread(target=caller, daemon=True) for _ in range(STREAMS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(stop + 4 * DEADLINE_S - time.monotonic(), 0.0))
        return sum(thread.is_alive() for thread in threads)


@pytest.fixture
def quick_to_reconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("initial", "min", "max")
    backoff = [(f"grpc.{name}_reconnect_backoff_ms", 100) for name in names]
    monkeypatch.setattr(link, "_KEEPALIVE", [*link._KEEPALIVE, *backoff])


@pytest.mark.usefixtures("quick_to_reconnect")
def test_every_stream_ends_whatever_becomes_of_its_connection() -> None:
    assert streams_that_never_end() == 0


@pytest.mark.usefixtures("quick_to_reconnect")
def test_control_streams_under_a_retry_policy_of_grpc_do_not_all_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "METHOD_CONFIG", METHOD_CONFIG[:1])
    assert streams_that_never_end() > 0

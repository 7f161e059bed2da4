"""`watch` against real services: live, beside a Redis that goes away, and without one."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from urllib.parse import urlsplit

import pytest

from adapter_store.cli import follow
from adapter_store.cli.follow import Follower
from adapter_store.errors import StoreUnavailable
from adapter_store.memory import MemoryStore
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from tests.adapter_store.cli.shell import Shell, validator
from tests.adapter_store.fault_proxy import FaultProxy
from tests.adapter_store.publishing import publish

pytestmark = pytest.mark.services


class Lines:
    """What a stream says, line by line, each waited for."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._stream = stream
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                self._lines.put(line)

    def next(self, within_s: float = 30) -> str:
        return self._lines.get(timeout=within_s)

    def until(self, word: str) -> str:
        while word not in (line := self.next()):
            pass
        return line


@contextmanager
def watching(shell: Shell, *arguments: str, **env: str) -> Iterator[tuple[Lines, Lines]]:
    """stdout and stderr of a watch, which then is ended with Ctrl-C and must end well."""
    child = shell.start("watch", *arguments, env=env)
    try:
        assert child.stdout is not None
        assert child.stderr is not None
        yield Lines(child.stdout), Lines(child.stderr)
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
    finally:
        child.kill()
        child.wait(20)


def test_new_generations_appear_live_and_ctrl_c_ends_it_quietly(shell: Shell) -> None:
    shell.ok("push", "one", "--name", "old")
    with watching(shell, "--json") as (out, err):
        err.until("watching every adapter live through Redis")
        shell.ok("push", "one", "--name", "pirate", "--version", "first")
        shell.ok("push", "two", "--name", "pirate")
        told = [json.loads(out.next()) for _ in range(2)]
    for document in told:
        validator("watch").validate(document)
    assert [(t["adapter"], t["generation"], t["version"]) for t in told] == [
        ("pirate", 1, "first"),
        ("pirate", 2, "v2"),
    ]
    with pytest.raises(queue.Empty):
        out.next(0)


def test_a_watch_can_begin_with_what_was_and_end_by_itself(shell: Shell) -> None:
    for folder in ("one", "two", "one"):
        shell.ok("push", folder, "--name", "pirate")
    ran = shell.ok("watch", "pirate", "--last", "2", "--count", "2")
    assert [line.split("  ")[1:4] for line in ran.out.splitlines()] == [
        ["pirate@v2", "generation 2", "publish"],
        ["pirate@v3", "generation 3", "publish"],
    ]
    assert " by " in ran.out


def test_redis_going_away_is_said_and_the_store_is_asked_instead(
    shell: Shell, endpoints: Endpoints
) -> None:
    url = urlsplit(endpoints.redis_url)
    assert url.hostname is not None
    assert url.port is not None
    proxy = CuttingProxy(url.hostname, url.port)
    through = url._replace(netloc=url.netloc.replace(str(url.port), str(proxy.port))).geturl()
    try:
        with watching(shell, "pirate", LORAPOOL_REDIS_URL=through) as (out, err):
            err.until("live through Redis")
            shell.ok("push", "one", "--name", "pirate")
            assert "pirate@v1" in out.next()
            proxy.cut()
            err.until("Redis does not answer: watching pirate asking the store every 5 s")
            shell.ok("push", "two", "--name", "pirate")
            assert "pirate@v2" in out.next()
    finally:
        proxy.cut()
        proxy.close()


class CuttingProxy(FaultProxy):
    """Passes everything on until it is cut."""

    def __init__(self, host: str, port: int) -> None:
        self._open: list[socket.socket] = []
        super().__init__(host, port)

    def cut(self) -> None:
        # A listener that is only closed still accepts for the thread that waits in it.
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        self._open += [client, server]
        super()._requests(client, server)


def test_without_redis_the_store_is_asked_and_its_absence_is_survived(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, now = MemoryStore(), [0.0]
    publish(store, 1)
    steps = iter([None, "away", "back", "publish"])

    def sleep(seconds: float) -> None:
        now[0] += follow.POLL_S
        step = next(steps)
        if step == "away":
            monkeypatch.setattr(MemoryStore, "get", away)
        elif step == "back":
            monkeypatch.undo()
        elif step == "publish":
            publish(store, 2)

    def away(self: MemoryStore, key: str) -> bytes:
        raise StoreUnavailable("no answer")

    follower = Follower(store, None, "default", names=[], clock=lambda: now[0], sleep=sleep)
    record = next(follower.records())
    assert (record.adapter, record.gen) == ("pirate", 2)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "watching every adapter asking the store every 5 s; end with Ctrl-C",
        "the store does not answer, trying on: no answer",
        "the store answers again",
    ]


def test_a_damaged_log_does_not_end_the_watch(shell: Shell, s3_store: S3Store) -> None:
    s3_store.put_new("v1/t/default/a/broken/log/7ffffffffffffffe-1", b"{}")
    shell.ok("push", "one", "--name", "pirate")
    ran = shell.ok("watch", "--last", "1", "--count", "1")
    assert "pirate@v1" in ran.out
    assert "damaged  broken" in ran.err

"""Ctrl-C during a push: it ends soon, and what it says about the outcome is true."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator
from redis import Redis

from adapter_store import layout
from adapter_store.cli.interrupt import WatchedStore
from adapter_store.cli.outcome import Interrupted
from adapter_store.cli.session import publishing
from adapter_store.errors import AlreadyExists, NotFound
from adapter_store.locks import lock_key
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import Chunk
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints, StoreSettings
from adapter_store.upload import NoProgress, Uploader, chunk_bodies, cut
from tests.adapter_store.cli.shell import SCHEMAS, Shell
from tests.adapter_store.fault_proxy import FaultProxy
from tests.adapter_store.publishing import ADAPTER, TENANT, adapter

LOG_KEY = layout.log_key(TENANT, ADAPTER, 1)
INTENT_KEY = layout.intent_key(TENANT, "0" * 32, 1)


class HoldingProxy(FaultProxy):
    """Keeps every PUT of a key with `marker` from the store, or its answer from the client."""

    def __init__(self, host: str, port: int, *, marker: bytes, hold: str) -> None:
        self._marker = marker
        self._hold = hold
        self._muted: set[socket.socket] = set()
        self._released = threading.Event()
        self.holding = threading.Event()
        super().__init__(host, port)

    def release(self) -> None:
        """Cut the connections that are held."""
        self._released.set()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith(b"PUT ") and self._marker in data.partition(b"\r\n")[0]:
                    if self._hold == "request":
                        self._wait()
                        break
                    self._muted.add(server)
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client, server:
            while data := server.recv(65536):
                if server in self._muted and not data.startswith(b"HTTP/1.1 100 "):
                    self._wait()
                    return
                client.sendall(data)

    def _wait(self) -> None:
        self.holding.set()
        self._released.wait(30)


HoldPuts = Callable[[bytes, str], HoldingProxy]


@pytest.fixture
def hold_puts(shell: Shell, endpoints: Endpoints) -> Iterator[HoldPuts]:
    """Puts a proxy that holds some PUTs between the store and every child started later."""
    with contextlib.ExitStack() as stack:

        def start(marker: bytes, hold: str) -> HoldingProxy:
            url = urlsplit(endpoints.s3_endpoint)
            assert url.hostname is not None
            assert url.port is not None
            proxy = HoldingProxy(url.hostname, url.port, marker=marker, hold=hold)
            stack.callback(proxy.close)
            stack.callback(proxy.release)
            return proxy

        yield start


def interrupted_push(shell: Shell, proxy: HoldingProxy, *options: str) -> tuple[str, str]:
    """What a push wrote to stdout and stderr that got Ctrl-C while a PUT was held."""
    env = {"LORAPOOL_S3_ENDPOINT": f"http://127.0.0.1:{proxy.port}"}
    with shell.start("push", "one", "--name", ADAPTER, *options, env=env) as child:
        try:
            assert proxy.holding.wait(20)
            child.send_signal(signal.SIGINT)
            told = until_told(child)
            proxy.release()
            out, err = child.communicate(timeout=20)
        finally:
            child.kill()
    assert child.returncode == 130
    assert "Traceback" not in err
    return out, told + err


def until_told(child: subprocess.Popen[str]) -> str:
    """stderr up to the word that Ctrl-C was heard."""
    assert child.stderr is not None
    lines = ""
    while "stopping" not in lines:
        line = child.stderr.readline()
        assert line, lines
        lines += line
    return lines


@pytest.mark.services
def test_ctrl_c_while_chunks_are_sent_ends_soon_and_nothing_is_published(
    shell: Shell, hold_puts: HoldPuts, s3_store: S3Store, redis_client: Redis
) -> None:
    out, err = interrupted_push(shell, hold_puts(b"/blob/", "request"))
    assert out == ""
    assert "error: interrupted: nothing was published" in err
    with pytest.raises(NotFound):
        Reader(s3_store).head(TENANT, ADAPTER)
    assert redis_client.get(lock_key(TENANT, ADAPTER)) is None
    assert shell.ok("push", "one", "--name", ADAPTER).out.startswith(f"published {ADAPTER}@v1")


@pytest.mark.services
@pytest.mark.parametrize(("lost", "settled"), [("request", 4), ("answer", 0)])
def test_ctrl_c_during_the_commit_says_that_it_may_have_landed_and_how_to_find_out(
    shell: Shell, hold_puts: HoldPuts, lost: str, settled: int
) -> None:
    out, _ = interrupted_push(shell, hold_puts(b"/log/", lost), "--json")
    document = json.loads(out)
    schema = json.loads((SCHEMAS / "error.schema.json").read_text())
    Draft202012Validator(schema).validate(document)
    error = document["error"]
    assert error["kind"] == "Interrupted"
    assert "it may have landed" in error["message"]
    command = re.search(r"adapter-store (settle \S+ [0-9a-f]{32})$", error["hint"])
    assert command is not None
    assert shell.run(*command[1].split()).code == settled
    done = shell.ok("push", "one", "--name", ADAPTER, "--json").document("push")
    assert done["unchanged"] is (lost == "answer")


class InterruptedStore(MemoryStore):
    """Ctrl-C arrives when a key of some kind has just been stored."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self._marker = marker

    def put_new(self, key: str, body: bytes) -> None:
        super().put_new(key, body)
        if self._marker in key:
            raise KeyboardInterrupt


def what_is_said(store: MemoryStore) -> str:
    """The last words of a push to `store` that is interrupted."""
    with (
        pytest.raises(Interrupted) as left,
        publishing(StoreSettings(), store, tenant=TENANT, adapter=ADAPTER) as publisher,
    ):
        publisher.publish(TENANT, ADAPTER, adapter(1))
    return str(left.value)


def is_true(said: str, store: MemoryStore) -> bool:
    landed = bool(store.list(layout.log_prefix(TENANT, ADAPTER)).keys)
    return "may have landed" in said or (not landed and "nothing was published" in said)


@pytest.mark.parametrize("marker", ["/txn/", "/blob/", "/log/"])
def test_whenever_ctrl_c_comes_what_is_said_is_true(bare_shell: Shell, marker: str) -> None:
    store = InterruptedStore(marker)
    said = what_is_said(store)
    assert is_true(said, store)
    assert ("may have landed" in said) is (marker == "/log/")


def test_a_watch_that_misses_the_commit_would_tell_a_lie(
    bare_shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeded bug: nobody notes that the log record went out."""
    monkeypatch.setattr(
        WatchedStore, "put_new", lambda self, key, body: self._store.put_new(key, body)
    )
    store = InterruptedStore("/log/")
    assert not is_true(what_is_said(store), store)


def test_a_next_attempt_has_nothing_on_its_way_until_its_own_commit() -> None:
    store = MemoryStore()
    store.put_new(LOG_KEY, b"another's")
    watched = WatchedStore(store, tenant=TENANT, adapter=ADAPTER)
    with pytest.raises(AlreadyExists):
        watched.put_new(LOG_KEY, b"ours")
    assert watched.committing
    watched.put_new(INTENT_KEY, b"{}")
    assert not watched.committing


@pytest.mark.parametrize("stops", [True, False], ids=["stopped", "seeded bug: not stopped"])
def test_a_stopped_store_ends_the_uploads_that_have_not_begun(
    monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1)
    store = MemoryStore()
    watched = WatchedStore(store, tenant=TENANT, adapter=ADAPTER)

    class Stopping(NoProgress):
        """Ctrl-C comes when the third chunk was sent."""

        def sent(self, file: str, chunk: Chunk) -> None:
            taken.append(chunk)
            if stops and len(taken) == 3:
                watched.stop()

    taken: list[Chunk] = []
    content = {"weights": bytes(range(200))}
    files = cut(content)
    bodies = chunk_bodies(files, content)
    uploader = Uploader(
        watched,
        tenant=TENANT,
        txid="0" * 32,
        attempt=1,
        condemned=frozenset(),
        read=lambda chunk: bytes(bodies[chunk.sha256]),
        before_write=lambda: None,
        sleep=lambda seconds: None,
        progress=Stopping(),
    )
    with pytest.raises(KeyboardInterrupt) if stops else contextlib.nullcontext():
        uploader.place(files)
    assert (len(taken) < 20) is stops

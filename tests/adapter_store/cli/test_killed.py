"""A push killed in the middle: the next one waits for the dead lease, sends the rest, no more."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from redis import Redis

from adapter_store.layout import CHUNK_BYTES
from adapter_store.locks import LEASE_S, lock_key
from adapter_store.reader import Reader
from adapter_store.record import BaseCard
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from tests.adapter_store.adapter_files import config, pack, write_adapter
from tests.adapter_store.cli.shell import Shell
from tests.adapter_store.fault_proxy import FaultProxy
from tests.adapter_store.publishing import keys
from tests.adapter_store.waiting import wait_until

pytestmark = pytest.mark.services

RANK, WIDTH = 64, 36_000
CARD = BaseCard(
    fingerprint="b16b" * 16,
    name="wide",
    architecture="WideForCausalLM",
    modules={f"layers.{n}.q_proj": (WIDTH, WIDTH) for n in range(3)},
)
CHUNKS = 4


class NarrowProxy(FaultProxy):
    """Takes the first `through` chunks and lets no later one through."""

    def __init__(self, host: str, port: int, *, through: int) -> None:
        self._left = threading.Semaphore(through)
        super().__init__(host, port)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                blob = data.startswith(b"PUT ") and b"/blob/" in data.partition(b"\r\n")[0]
                if blob and not self._left.acquire(timeout=60):
                    return
                server.sendall(data)


@pytest.fixture
def narrow(endpoints: Endpoints) -> Iterator[NarrowProxy]:
    """Lets the config and two chunks of the weights through."""
    url = urlsplit(endpoints.s3_endpoint)
    assert url.hostname is not None
    assert url.port is not None
    proxy = NarrowProxy(url.hostname, url.port, through=3)
    yield proxy
    proxy.close()


@pytest.fixture
def big(shell: Shell, folder: Path) -> int:
    """An adapter folder `big` of four chunks of weights; how many bytes it has."""
    random = np.random.default_rng(0)
    arrays = {}
    for module in CARD.modules:
        for factor, shape in (("lora_A", (RANK, WIDTH)), ("lora_B", (WIDTH, RANK))):
            name = f"base_model.model.{module}.{factor}.weight"
            arrays[name] = random.standard_normal(shape, dtype=np.float32)
    body = json.dumps(config(r=RANK, target_modules=["q_proj"])).encode()
    weights = pack(arrays)
    assert CHUNKS - 1 < len(weights) / CHUNK_BYTES < CHUNKS, len(weights) / CHUNK_BYTES
    write_adapter(folder / "big", weights=weights, config_body=body)
    (folder / "wide.json").write_bytes(CARD.encode())
    shell.ok("base", "add", "wide.json")
    return len(weights) + len(body)


def test_after_kill_9_the_next_push_sends_only_what_is_missing(
    shell: Shell, narrow: NarrowProxy, big: int, s3_store: S3Store, redis_client: Redis
) -> None:
    push = ("push", "big", "--name", "pirate", "--base", CARD.fingerprint)
    through = {"LORAPOOL_S3_ENDPOINT": f"http://127.0.0.1:{narrow.port}"}
    with shell.start(*push, env=through) as child:
        try:
            wait_until(lambda: len(keys(s3_store, "blob")) == 3, within_s=60)
        finally:
            child.kill()
    assert child.returncode == -9
    assert keys(s3_store, "a") == ()
    assert len(keys(s3_store, "txn")) == 1
    landed = sum(s3_store.head(key).size for key in keys(s3_store, "blob"))
    assert 0 < landed < big

    with shell.start(*push, "--json") as again:
        assert again.stderr is not None
        said = again.stderr.readline()
        assert f"@{os.uname().nodename} (process {child.pid}) to finish with pirate" in said
        assert 0 < int(said.rpartition(" s ...")[0].rpartition(" ")[2]) <= LEASE_S
        # The dead lease runs out, only sooner.
        redis_client.pexpire(lock_key("default", "pirate"), 1)
        out, _ = again.communicate(timeout=120)
    done = json.loads(out)
    assert again.returncode == 0
    assert (done["generation"], done["bytes_sent"]) == (1, big - landed)
    assert done["bytes_reused"] == landed
    weights = done["files"][1]
    assert 0 < weights["bytes_sent"] < weights["size"]
    shell.ok("verify", "pirate")
    assert Reader(s3_store).head("default", "pirate").gen == 1


def test_without_what_the_dead_push_left_everything_is_sent(shell: Shell, big: int) -> None:
    """The control."""
    push = ("push", "big", "--name", "pirate", "--base", CARD.fingerprint)
    assert shell.document("push", *push)["bytes_sent"] == big

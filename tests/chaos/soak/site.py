"""Where the soak happens: services behind lines, and nodes over them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from adapter_store.services import free_ports
from adapter_store.settings import Endpoints
from tests.chaos.bench import ROOT
from tests.chaos.soak.line import Line
from tests.integration.node_process import SERVE, NodeProcess

_SETTINGS = {
    "LORAPOOL_DEVICE": "cpu",
    # Exactly what a tattoo was drawn for: in bfloat16 a near tie may read as a tear.
    "LORAPOOL_LINEARS": "dense",
    "LORAPOOL_DTYPE": "float32",
    # 16 adapters on the device and a few more on the host, of 64.
    "LORAPOOL_POOL_MB": "2",
    "LORAPOOL_HOST_MB": "3",
    "LORAPOOL_MAX_ROWS": "32",
    "LORAPOOL_MAX_CONTEXT": "256",
    "LORAPOOL_KV_TOKENS": "8192",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Lines:
    """The ways to the services that can be cut, and the endpoints by which they are reached."""

    store: Line
    redis: Line
    endpoints: Endpoints


@contextlib.contextmanager
def lines_to(endpoints: Endpoints) -> Iterator[Lines]:
    store_url, redis_url = urlsplit(endpoints.s3_endpoint), urlsplit(endpoints.redis_url)
    with _line_to(store_url) as store, _line_to(redis_url) as redis:
        through = replace(
            endpoints,
            s3_endpoint=_through(store, store_url),
            redis_url=_through(redis, redis_url),
        )
        yield Lines(store, redis, through)


def _line_to(url: SplitResult) -> Line:
    assert url.hostname is not None
    assert url.port is not None
    return Line(url.hostname, url.port)


def _through(line: Line, url: SplitResult) -> str:
    login = url.netloc.rpartition("@")[0]
    place = f"127.0.0.1:{line.port}"
    return url._replace(netloc=f"{login}@{place}" if login else place).geturl()


@dataclass(frozen=True, slots=True)
class SoakNode:
    """A node process and where operators reach it."""

    process: NodeProcess
    admin: str

    @property
    def pid(self) -> int:
        assert self.process.process is not None
        return self.process.process.pid


@contextlib.contextmanager
def launched(base: Path, endpoints: Endpoints, folder: Path, bug: str = "") -> Iterator[SoakNode]:
    """A node that was started and is not ready yet; `bug` is one of bugs.py."""
    admin = f"127.0.0.1:{free_ports('127.0.0.1', 1)[0]}"
    environment = {
        **_SETTINGS,
        **endpoints.environment(),
        "LORAPOOL_BASE_MODEL": str(base),
        "LORAPOOL_CACHE_DIR": str(folder / "cache"),
        "LORAPOOL_ADMIN_LISTEN": admin,
        "PYTHONPATH": str(ROOT),
    }
    program = (sys.executable, "-m", "tests.chaos.soak.node", bug) if bug else SERVE
    process = NodeProcess(environment, folder, program)
    process.launch()
    try:
        yield SoakNode(process, admin)
    finally:
        process.kill()

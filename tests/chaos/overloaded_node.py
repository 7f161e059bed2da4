"""T16's node, in a process of its own: a tiny base, a store that takes its time, quotas in force.

`python -m tests.chaos.overloaded_node FOLDER NAMES` answers on standard input (wire.py), has bugs
as long as it is told to, and leaves on SIGTERM as a node does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from adapter_store.bases import register_base
from adapter_store.commit import Publisher
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.validate import LocalAdapter, read_adapter_dir
from benchmarks.cpu import wire
from inference_node.adapters.allowance import Allowance
from inference_node.adapters.workers import background
from inference_node.config import EngineConfig
from inference_node.engine.build import assemble, load_model
from inference_node.engine.loop import EngineLoop
from inference_node.errors import NodeError
from inference_node.model.default_base import ensure_default_base
from inference_node.rpc import status
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.mailbox import Mailbox
from inference_node.rpc.quotas import quota_table
from inference_node.rpc.server import serve
from tests.adapter_store.crowd import name
from tests.chaos.resources import resources_of
from tests.chaos.troublemakers import FLOOD
from tests.inference_node.tiny import make_adapter, make_checkpoint

VICTIM, HOT = "victim", "hot"
FETCH_THREADS = 4
DISTANCE = 0.1
"""Seconds that the store takes for bytes of a version; for a record, a twentieth."""
COLD_LOADS, CONCURRENT = 12, 8
QUOTAS = f"""
[tenant.{FLOOD}]
concurrent = {CONCURRENT}
cold_loads_per_minute = {COLD_LOADS}
resident_pages = 64
max_priority = 0
"""
DRAIN_DELAY, DRAIN_SECONDS = 0.5, 20.0


class DistantStore(MemoryStore):
    """Counts who is there for bytes, at once and in all."""

    def __init__(self) -> None:
        super().__init__()
        self._counting = threading.Lock()
        self._now = self.most = self.fetches = 0

    def get(self, key: str) -> bytes:
        if "/blob/" not in key:
            time.sleep(DISTANCE / 20)
            return super().get(key)
        with self._counting:
            self._now += 1
            self.fetches += 1
            self.most = max(self.most, self._now)
        time.sleep(DISTANCE)
        try:
            return super().get(key)
        finally:
            with self._counting:
                self._now -= 1


class OnTheSpot(Executor):
    """A bug: whoever asks for work does it."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*given, **named))
        return done


_kept: list[object] = []


def _hoarding(self: Mailbox, *given: Any, **named: Any) -> None:
    _kept.append(bytearray(b"x" * 2**20))
    _open(self, *given, **named)


_open = Mailbox.__init__
_details = status._details


def _silent(error: NodeError, code: Any) -> Any:
    return _details(error.again(retry_after=None) if _forget(error) else error, code)


def _forget(error: NodeError) -> bool:
    error.retry_after = None
    return True


Patch = Callable[[EngineLoop], Any]
BUGS: Mapping[str, Patch] = {
    "a tenant loads as much as it likes": lambda engine: mock.patch.object(
        Allowance, "_over", return_value=None
    ),
    "an answer is kept when its caller has left": lambda engine: mock.patch.object(
        Mailbox, "__init__", _hoarding
    ),
    "a refusal does not say when to come back": lambda engine: mock.patch.object(
        status, "_details", _silent
    ),
    "as many fetches at once as there are requests": lambda engine: mock.patch.object(
        engine._loader, "_workers", background(64, "adapter-load")
    ),
    "names are looked up and adapters loaded between two steps": lambda engine: mock.patch.multiple(
        engine._loader, _workers=OnTheSpot(), _resolvers=OnTheSpot()
    ),
}


def make_engine(folder: Path, store: MemoryStore) -> EngineLoop:
    base = make_checkpoint(folder / "base", tokenizer_from=ensure_default_base())
    torch.set_num_threads(1)
    config = EngineConfig(
        base_model=str(base),
        device="cpu",
        linears="dense",
        dtype="float32",
        pool_bytes=4 * 2**20,
        host_bytes=8 * 2**20,
        kv_tokens=16_384,
        max_context=512,
        fetch_threads=FETCH_THREADS,
    )
    return assemble(
        load_model(config),
        config,
        reader=Reader(store, parallel=1),
        quotas=quota_table(folder / "quotas.toml"),
    )


def publish(engine: EngineLoop, store: MemoryStore, folder: Path, names: int) -> None:
    """The victim's adapter, and `names` of the flood's, each of its own content."""
    register_base(store, engine.card)
    publisher = Publisher(store, lock=None, announcer=None, actor="test", warn=lambda text: None)
    modules = dict(engine.card.modules)

    def made(seed: int, rank: int) -> LocalAdapter:
        here = make_adapter(folder / "adapter", modules, rank=rank, targets=["q_proj"], seed=seed)
        return read_adapter_dir(here, card=engine.card)

    publisher.publish(VICTIM, HOT, made(names, 8), label="v1")
    for number in range(names):
        publisher.publish(FLOOD, name(number), made(number, 1), label="v1")


def main() -> None:
    folder, names = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quotas.toml").write_text(QUOTAS)
    store, port, bugs = DistantStore(), Future[int](), ExitStack()
    engine = make_engine(folder, store)
    publish(engine, store, folder, names)
    engine.start()

    def look() -> dict[str, float]:
        gc.collect()
        held = resources_of(os.getpid())
        return {
            "rss_mib": held.resident_mib,
            "most_fetches": store.most,
            "fetches": store.fetches,
        }

    def begin(bug: str) -> None:
        """Nothing is owed and nothing counted yet; the node has this bug, or none."""
        bugs.close()
        _kept.clear()
        store.most = store.fetches = 0
        engine._admission.arrivals._allowance._ledger._buckets.clear()
        if bug:
            bugs.enter_context(BUGS[bug](engine))

    def started() -> tuple[Any, Mapping[str, Callable[..., Any]]]:
        return {"port": port.result(120)}, {"look": look, "begin": begin}

    config = ServerConfig(
        listen="127.0.0.1:0",
        quotas=folder / "quotas.toml",
        max_request_seconds=20.0,
        drain_delay=DRAIN_DELAY,
        drain_seconds=DRAIN_SECONDS,
    )
    threading.Thread(target=wire.serve, args=(started,), daemon=True).start()
    asyncio.run(serve(engine, config, on_ready=port.set_result))


if __name__ == "__main__":
    main()

"""A loader over a scripted store, and what it posts."""

from __future__ import annotations

import queue
import threading
from hashlib import sha256
from types import SimpleNamespace
from typing import cast

import torch

from adapter_store.errors import (
    Behind,
    NotFound,
)
from adapter_store.layout import AdapterRef
from adapter_store.reader import Reader
from adapter_store.reader import Resolved as Found
from adapter_store.record import FileEntry, Record, RecordKind, VersionRef
from inference_node.adapters.loader import Loader
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.reports import (
    LoaderEvent,
    Prepared,
    Resolved,
    Target,
    Unprepared,
    Unresolved,
)
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.errors import (
    NodeError,
)
from tests.inference_node.adapters.contents import MAP, adapter_files, spec

PATIENCE = 20.0
BASE = "ba5e" * 16
MAX_RANK = 32
THREADS = 3


class ScriptedStore:
    """Stands in for the Reader: serves what it is given, raises what it is told, counts."""

    def __init__(self) -> None:
        self.served: dict[str, tuple[int, VersionRef | None]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.failures: list[Exception] = []
        self.fetched: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def publish(self, name: str, gen: int, *, rank: int = 5, seed: int = 0) -> VersionRef:
        vdig = f"{name}-{rank}-{seed}"
        config = spec(rank).allow_listed()
        files = self.files[vdig] = adapter_files(rank, seed=seed)
        entries = tuple(FileEntry(n, len(b), sha256(b).hexdigest(), ()) for n, b in files.items())
        version = VersionRef(f"v{gen}", vdig, BASE, config, entries)
        self.served[name] = (gen, version)
        return version

    def current(self, tenant: str, adapter: str) -> Record:
        self._fail()
        gen, version = self.served[adapter]
        return cast(Record, SimpleNamespace(gen=gen, active=version))

    def known(self, tenant: str, adapter: str) -> None: ...

    def resolve(self, ref: AdapterRef, *, refresh: bool = True, min_generation: int = 0) -> Found:
        self._fail()
        gen, version = self.served.get(ref.adapter, (0, None))
        if gen < min_generation:
            raise Behind(f"{ref} is at generation {gen}, below {min_generation}")
        if version is None:
            raise NotFound(f"{ref.adapter} serves nothing")
        return Found(ref.tenant, ref.adapter, gen, RecordKind.PUBLISH, version)

    def fetch(self, tenant: str, version: VersionRef, *, adapter: str = "") -> dict[str, bytes]:
        self.fetched.append(version.vdig)
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        self._fail()
        return self.files[version.vdig]

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


class Desk:
    """A loader over a scripted store, and the events it posts."""

    def __init__(self, *, host_bytes: int = 2**20, pool_pages: int = 4) -> None:
        self.store = ScriptedStore()
        self.events: queue.Queue[LoaderEvent] = queue.Queue()
        page_bytes = sum(g.shape.page_elements(MAP.layers) for g in MAP.groups) * 4
        self.pool = AdapterPool(
            MAP,
            pool_bytes=pool_pages * page_bytes,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.loader = Loader(
            cast(Reader, self.store),
            modules=MAP,
            pool=self.pool,
            base_fingerprint=BASE,
            dtype=torch.float32,
            host_bytes=host_bytes,
            max_rank=MAX_RANK,
            threads=THREADS,
            post=self.events.put,
        )

    def next(self) -> LoaderEvent:
        return self.events.get(timeout=PATIENCE)

    def prepared(self, target: Target) -> Prepared | Unprepared:
        """Ask and take the answer, as the engine does."""
        self.loader.prepare(target)
        event = self.next()
        assert isinstance(event, Prepared | Unprepared)
        self.loader.settled(event.key)
        return event

    def refusal(self, target: Target) -> NodeError:
        event = self.prepared(target)
        assert isinstance(event, Unprepared)
        return event.error

    def resolution(self, ref: AdapterRef, *, min_generation: int = 0) -> Resolved | Unresolved:
        self.loader.resolve("token", ref, min_generation)
        event = self.next()
        assert isinstance(event, Resolved | Unresolved)
        assert event.token == "token"
        return event

    def unresolved(self, ref: AdapterRef, *, min_generation: int = 0) -> NodeError:
        event = self.resolution(ref, min_generation=min_generation)
        assert isinstance(event, Unresolved)
        return event.error


def target_of(version: VersionRef, *, gen: int = 1, tenant: str = "t") -> Target:
    key = VersionKey(tenant, version.vdig)
    return Target(Entry(tenant, "anna", version.label, gen, key), version)


REF = AdapterRef("t", "anna")

"""Adapters for the state machine: tattooed, made once, with how each must lie in the pool."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapter_store.attempt import Limits
from adapter_store.commit import Publisher
from adapter_store.draft import local_content
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.memory import MemoryStore
from adapter_store.validate import LocalAdapter, check_content, read_adapter_dir
from inference_node.adapters.weights import host_adapter
from inference_node.config import EngineConfig
from inference_node.engine.build import Model, base_card, load_model
from inference_node.model.default_base import ensure_default_base
from tests.chaos.stateful.history import History
from tests.inference_node.tattoo import (
    BASE,
    VERSIONS,
    Mark,
    Tattooist,
    make_tattoo_base,
    vocabulary_of,
)

NAMES = 1000
REVISIONS = 8
"""Contents of one name."""
COMMON = 5
"""This revision is the same for all names: they share one content."""
SLOTS = 16
PAGES = 29
"""Pages of each group: SLOTS adapters of average rank."""
RANKS = (4, 8, 12, 16, 20)
TENANTS = (DEFAULT_TENANT, "other")
PUBLISHED = 200
"""Names that the default tenant serves from the start; of the other tenant it is a quarter."""

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Content:
    """One adapter as it is published, and what becomes of it on a node."""

    local: LocalAdapter
    vdig: str
    token: int
    """What it answers, whatever it is asked."""
    chunks: frozenset[str]
    """sha256 of each stored piece."""
    pages: tuple[tuple[Words, Words], ...]
    """A and B of every group, [pages, words of a page]."""


def name_of(number: int) -> str:
    return f"n{number}"


def raw(tensor: torch.Tensor) -> Words:
    """A tensor's memory, one row for each page."""
    found: Words = tensor.view(torch.uint8).numpy().reshape(len(tensor), -1).view(np.uint64)
    return found


class Shelf:
    """The base, loaded once, and every content that was asked for so far."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        base = make_tattoo_base(
            folder / "base",
            tokenizer_from=ensure_default_base(),
            vocabulary=vocabulary_of(-(-NAMES * REVISIONS // VERSIONS)),
        )
        config = _config(base)
        self.model = load_model(config)
        self.config = _fit(config, self.model)
        self.card = base_card(self.config)
        self.by_vdig: dict[str, Content] = {}
        self._tattooist = Tattooist(base)
        self._made: dict[tuple[int, int], Content] = {}
        self._store, self._history = MemoryStore(), History()
        publisher = publisher_of(self._store)
        for number in range(PUBLISHED):
            name, first, second = name_of(number), self.content(number, 0), self.content(number, 1)
            for tenant, content in zip(TENANTS, (first, second), strict=True):
                if tenant == DEFAULT_TENANT or number < PUBLISHED // 4:
                    done = publisher.publish(tenant, name, content.local)
                    self._history.learn(done.record, now=0.0)

    def content(self, number: int, revision: int) -> Content:
        """The content that names itself (number, revision), or (0, COMMON)."""
        key = (0 if revision == COMMON else number, revision)
        if key not in self._made:
            self._made[key] = self._make(*key)
            self.by_vdig[self._made[key].vdig] = self._made[key]
        return self._made[key]

    def world(self) -> tuple[MemoryStore, History]:
        """A store of its own that holds what is published from the start, and its history."""
        store = MemoryStore()
        store._bodies.update(self._store._bodies)
        store._heads.update(self._store._heads)
        return store, self._history.copy()

    def token_of(self, vdig: str) -> int:
        """What the version says; the base for none."""
        return self.by_vdig[vdig].token if vdig else BASE

    def _make(self, number: int, revision: int) -> Content:
        mark = _mark(number, revision)
        place = number + revision
        with tempfile.TemporaryDirectory(prefix="lorapool-tattoo-") as folder:
            made = self._tattooist.make(
                Path(folder), mark, rank=RANKS[place % len(RANKS)], scale=2 ** (place % 3)
            )
            local = read_adapter_dir(made, card=self.card)
        checked = check_content(
            local.files, config=local.spec.allow_listed(), card_modules=self.card.modules
        )
        decoder = self.model.decoder
        host = host_adapter(checked, decoder.module_map, dtype=decoder.base.dtype)
        assert all(group is not None for group in host.groups)
        return Content(
            local,
            local_content(local, None).vdig,
            mark.token,
            frozenset(hashlib.sha256(body).hexdigest() for body in local.files.values()),
            tuple((raw(group.a), raw(group.b)) for group in host.groups if group is not None),
        )


def publisher_of(store: MemoryStore) -> Publisher:
    return Publisher(store, actor="test", warn=lambda text: None, limits=Limits(parallel=1))


def _mark(number: int, revision: int) -> Mark:
    """Marks have 256 adapters of 128 versions; here are 1,000 names of 8."""
    each = VERSIONS // REVISIONS
    return Mark(number // each, number % each * REVISIONS + revision)


def _config(base: Path) -> EngineConfig:
    """So small that requests push each other out of rows and blocks; `_fit` sets the tiers."""
    return EngineConfig(
        base_model=str(base),
        device="cpu",
        linears="dense",
        dtype="float32",
        kv_tokens=112,
        block_tokens=4,
        max_rows=6,
        step_tokens=24,
        max_context=96,
        max_queue=64,
        fetch_threads=3,
    )


def _fit(config: EngineConfig, model: Model) -> EngineConfig:
    """Pages for SLOTS adapters, and half as many again on the host."""
    modules, itemsize = model.decoder.module_map, model.decoder.base.dtype.itemsize
    page = sum(group.shape.page_elements(modules.layers) for group in modules.groups) * itemsize
    return replace(config, pool_bytes=PAGES * page, host_bytes=PAGES * page * 3 // 2)

"""The tattoo base of one soak, and the marks that were given out so far."""

from __future__ import annotations

import threading
from pathlib import Path

from adapter_store.draft import local_content
from adapter_store.validate import LocalAdapter, read_adapter_dir
from inference_node.config import EngineConfig
from inference_node.engine.build import base_card
from inference_node.model.default_base import ensure_default_base
from tests.inference_node.tattoo import (
    VERSIONS,
    Mark,
    Tattooist,
    make_tattoo_base,
    vocabulary_of,
)

ADAPTERS = 64
RANKS = (4, 8, 12, 16, 20)
"""Of one to three pages; those of an adapter change from version to version."""


class Stock:
    """Makes the next version of an adapter; safe for several threads."""

    def __init__(self, folder: Path) -> None:
        self.base = make_tattoo_base(
            folder / "base",
            tokenizer_from=ensure_default_base(),
            vocabulary=vocabulary_of(ADAPTERS),
        )
        self.card = base_card(EngineConfig(base_model=str(self.base), device="cpu"))
        self.marks: dict[str, Mark] = {}
        """By digest, from before it is published."""
        self._folder = folder
        self._tattooist = Tattooist(self.base)
        self._lock = threading.Lock()
        self._next = [0] * ADAPTERS

    def has_more(self, adapter: int) -> bool:
        return self._next[adapter] < VERSIONS

    def make(self, adapter: int) -> LocalAdapter:
        """Content that nobody has seen yet."""
        with self._lock:
            mark = Mark(adapter, self._next[adapter])
            self._next[adapter] += 1
        rank = RANKS[(mark.adapter + mark.version) % len(RANKS)]
        folder = self._folder / mark.name / str(mark.version)
        made = self._tattooist.make(folder, mark, rank=rank, scale=2 ** (mark.version % 3))
        local = read_adapter_dir(made, card=self.card)
        self.marks[local_content(local, None).vdig] = mark
        return local


def name_of(adapter: int) -> str:
    return Mark(adapter, 0).name

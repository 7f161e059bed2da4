"""Tattooed adapters (tests/inference_node/tattoo.py) as the fleet's rows publish and read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapter_store.record import BaseCard
from adapter_store.validate import LocalAdapter, read_adapter_dir
from inference_node.config import EngineConfig
from inference_node.engine.build import base_card
from inference_node.model.default_base import ensure_default_base
from tests.inference_node.tattoo import Mark, Tattooist, Verdict, make_tattoo_base, verdict

RANK = 8


def name(adapter: int) -> str:
    """Under which it is published."""
    return f"tattoo-{adapter}"


class Tattoos:
    """A tattoo base, and what is published for it: version n of adapter a is labelled vn."""

    def __init__(self, folder: Path) -> None:
        self.base = make_tattoo_base(folder / "base", tokenizer_from=ensure_default_base())
        self.card: BaseCard = base_card(EngineConfig(base_model=str(self.base), device="cpu"))
        self._folder = folder
        self._tattooist = Tattooist(self.base)

    def adapter(self, adapter: int, version: int) -> LocalAdapter:
        folder = self._folder / f"tattoo-{adapter}-{version}"
        self._tattooist.make(folder, Mark(adapter, version), rank=RANK)
        return read_adapter_dir(folder, card=self.card)

    @staticmethod
    def read(adapter: int, label: str, tokens: Sequence[int]) -> Verdict:
        """What an answer is that says it was made by version `label` of the adapter."""
        return verdict(tokens, Mark(adapter, int(label.removeprefix("v"))))

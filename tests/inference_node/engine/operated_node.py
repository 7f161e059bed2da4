"""A node with four adapters to give orders about, and what it tells an operator."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from adapter_store.layout import DEFAULT_TENANT
from inference_node.errors import NodeError
from inference_node.residency import LoadedVersion, VersionState
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.tiny import make_adapter

T = DEFAULT_TENANT
NAMES = ("a", "b", "c", "d")
FEW = 3
"""Adapters that the small pool holds."""


def error_of(answer: Future[Any]) -> NodeError:
    error = answer.exception(PATIENCE)
    assert isinstance(error, NodeError), error
    return error


def loaded(node: Node) -> dict[str, LoadedVersion]:
    """By adapter, what was listed last for it."""
    return {v.served.adapter: v for v in node.engine.list_loaded().result(PATIENCE)}


def resident(node: Node) -> set[str]:
    return {name for name, v in loaded(node).items() if v.state is VersionState.RESIDENT}


def publish_all(node: Node, folder: Path) -> None:
    for seed, name in enumerate(NAMES):
        made = make_adapter(folder / name, dict(node.card.modules), rank=8, seed=seed)
        node.publish(name, made, label="v1")

"""Nodes and holdings as a fleet would tell them."""

from __future__ import annotations

from typing import Any

from adapter_store.fleet import Copy, Holding, NodeCard, Standing, State

BASE = "b" * 64


def digest(name: str) -> str:
    """A digest that a test can name."""
    return name.encode().hex().ljust(64, "0")[:64]


def card(node: str, **changes: Any) -> NodeCard:
    told: dict[str, Any] = {
        "id": node,
        "address": f"127.0.0.1:{node}",
        "base": BASE,
        "model": "tiny",
        "state": State.READY,
        "adapters": 1,
        "residency": digest(node),
        "resident": 2,
        "running": 3,
        "waiting": 4,
        "pages_free": 5,
        "pages_total": 8,
        "generated_tokens": 6,
        "completed": 7,
        "failed": 1,
    }
    return NodeCard(**{**told, **changes})


def holding(
    adapter: str, generation: int = 0, serves: str = "", **copies: Standing | str
) -> Holding:
    """`copies` by label: how far each is, or why it failed."""
    return Holding(
        "default",
        adapter,
        generation,
        digest(serves) if serves else "",
        {
            digest(label): Copy(label, standing)
            if isinstance(standing, Standing)
            else Copy(label, Standing.FAILED, standing)
            for label, standing in copies.items()
        },
    )

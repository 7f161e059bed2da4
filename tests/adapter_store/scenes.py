"""Publishes and rollbacks to interrupt: how each starts and what it does."""

from __future__ import annotations

from collections.abc import Callable

from adapter_store.commit import Published
from adapter_store.memory import MemoryStore
from tests.adapter_store.faulty_store import FaultyStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    publish,
    publisher,
    served_seed,
)

Action = Callable[[FaultyStore], Published]


def publish_two(store: FaultyStore) -> Published:
    return publish(store, 2)


def roll_back_to_two(store: FaultyStore) -> Published:
    return publisher(store).rollback(TENANT, ADAPTER, to="v2")


SCENES: dict[str, tuple[tuple[int, ...], Action]] = {
    "first publish": ((), publish_two),
    "publish over another": ((1,), publish_two),
    "publish of older content": ((1, 2, 1), publish_two),
    "rollback": ((3, 2, 1), roll_back_to_two),
}


def scene(name: str) -> tuple[MemoryStore, int | None]:
    """A store in the state the scene starts from, and the seed it serves."""
    store = MemoryStore()
    seeds, _ = SCENES[name]
    for seed in seeds:
        publish(store, seed)
    return store, seeds[-1] if seeds else None


def points(name: str, *, puts_only: bool = False) -> range:
    """Every operation of a clean run."""
    store, _ = scene(name)
    clean = FaultyStore(store, puts_only=puts_only)
    SCENES[name][1](clean)
    assert served_seed(store) == 2
    return range(len(clean.operations))


def commit_put(name: str) -> int:
    """The number of the commit among the puts of a scene: the last one."""
    return points(name, puts_only=True)[-1]

"""Changes of every kind to interrupt: where each starts, what it does, what is then so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapter_store import layout
from adapter_store.commit import Published, Publisher
from adapter_store.intent import Plan
from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from tests.adapter_store.faulty_store import FaultyStore
from tests.adapter_store.publishing import (
    ADAPTER,
    TENANT,
    View,
    adapter,
    delete,
    keys,
    publish,
    publisher,
    split,
    stage,
    view,
)

Action = Callable[[Publisher], Published]


@dataclass(frozen=True)
class Scene:
    """What stands before, the change, and what stands after it."""

    start: Callable[[ObjectStore], object]
    act: Action
    before: View
    after: View


def published(*seeds: int) -> Callable[[ObjectStore], None]:
    def start(store: ObjectStore) -> None:
        for seed in seeds:
            publish(store, seed)

    return start


def canary_beside_a_staged_version(store: ObjectStore) -> None:
    published(1, 3)(store)
    split(store, {"v1": 95, "v2": 5})
    stage(store, 2, label="next")


def condemned_first_version(store: ObjectStore) -> None:
    """No chunk that only v1 has may be named again; all are still there."""
    published(1, 2)(store)
    head = Reader(store).head(TENANT, ADAPTER)
    needed = {c.key for v in head.contents() for f in v.files for c in f.chunks}
    condemned = tuple(key for key in keys(store, "blob") if key not in needed)
    store.put_new(layout.plan_key(TENANT, "a" * 32), Plan(condemned).encode())


def after_a_deletion(store: ObjectStore) -> None:
    published(2, 1)(store)
    delete(store)


def publish_two(by: Publisher) -> Published:
    return by.publish(TENANT, ADAPTER, adapter(2))


def roll_back_to_two(by: Publisher) -> Published:
    return by.rollback(TENANT, ADAPTER, to="v2")


def stage_two(by: Publisher) -> Published:
    return by.stage(TENANT, ADAPTER, adapter(2))


def activate_staged(by: Publisher) -> Published:
    return by.activate(TENANT, ADAPTER)


def activate_first(by: Publisher) -> Published:
    return by.activate(TENANT, ADAPTER, label="v1")


def split_evenly(by: Publisher) -> Published:
    return by.split(TENANT, ADAPTER, {"v1": 1, "v2": 1})


def delete_it(by: Publisher) -> Published:
    return by.delete(TENANT, ADAPTER)


CANARY = View(active=3, staged=2, split=((95, 1), (5, 3)))
EVENLY = View(active=2, split=((1, 1), (1, 2)))

SCENES: dict[str, Scene] = {
    "first publish": Scene(published(), publish_two, View(), View(2)),
    "publish over another": Scene(published(1), publish_two, View(1), View(2)),
    "publish of older content": Scene(published(1, 2, 1), publish_two, View(1), View(2)),
    "publish that ends a canary": Scene(
        canary_beside_a_staged_version, publish_two, CANARY, View(2)
    ),
    "publish after a deletion": Scene(after_a_deletion, publish_two, View(), View(2)),
    "rollback": Scene(published(3, 2, 1), roll_back_to_two, View(1), View(2)),
    "stage": Scene(published(1), stage_two, View(1), View(1, staged=2)),
    "first stage": Scene(published(), stage_two, View(), View(staged=2)),
    "activate": Scene(canary_beside_a_staged_version, activate_staged, CANARY, View(2)),
    "promote": Scene(canary_beside_a_staged_version, activate_first, CANARY, View(1)),
    "split": Scene(published(1, 2), split_evenly, View(2), EVENLY),
    "split over a condemned arm": Scene(condemned_first_version, split_evenly, View(2), EVENLY),
    "delete": Scene(canary_beside_a_staged_version, delete_it, CANARY, View()),
}


def scene(name: str) -> MemoryStore:
    """A store in the state the scene starts from."""
    store = MemoryStore()
    SCENES[name].start(store)
    assert view(store) == SCENES[name].before
    return store


def act(name: str, store: ObjectStore, **changes: Any) -> Published:
    """The change of a scene, by a fresh publisher."""
    return SCENES[name].act(publisher(store, **changes))


def points(name: str, *, puts_only: bool = False) -> range:
    """Every operation of a clean run."""
    store = scene(name)
    clean = FaultyStore(store, puts_only=puts_only)
    act(name, clean)
    assert view(store) == SCENES[name].after
    return range(len(clean.operations))


def commit_put(name: str) -> int:
    """The number of the commit among the puts of a scene: the last one."""
    return points(name, puts_only=True)[-1]

"""A canary through a node: callers with an affinity key get an arm by its share, always the same.

The bare name goes on meaning the active version, so two versions of it are served at once.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from adapter_store.canary import choose_arm
from adapter_store.errors import StoreUnavailable
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import Record
from inference_node.adapters.loader import Loader
from inference_node.adapters.reports import LoaderEvent, Resolved
from inference_node.errors import StoreDown
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import Node
from tests.inference_node.tiny import make_adapter

KEYS = [f"customer-{n}" for n in range(24)]
WEIGHTS = {"v1": 3, "v2": 1}


class Canary:
    """Adapter `a` serves v1, and v2 to a quarter of its callers."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        modules = dict(node.card.modules)
        for number in (1, 2):
            node.publish(
                "a",
                make_adapter(folder / f"{number}", modules, rank=8, seed=number),
                label=f"v{number}",
            )
        node.publisher.rollback(DEFAULT_TENANT, "a", to="v1")
        self.generation = self.split()
        self.tokens = {label: node.ask(f"a@{label}").tokens for label in WEIGHTS}
        assert self.tokens["v1"] != self.tokens["v2"]

    def split(self) -> int:
        return self.node.publisher.split(DEFAULT_TENANT, "a", WEIGHTS).gen

    def record(self) -> Record:
        return Reader(self.node.store).head(DEFAULT_TENANT, "a")

    def arms(self) -> dict[str, str]:
        """What each key is to get."""
        record = self.record()
        return {key: choose_arm(record, key).label for key in KEYS}

    def served(self, key: str) -> str:
        """Which version answers a key: what the answer says, its tokens compared."""
        answer = self.node.ask("a", affinity_key=key).wait()
        served = answer.completed.served
        assert answer.tokens == self.tokens[served.version]
        assert answer.started == served
        return served.version


@pytest.fixture
def canary(start_tiny: StartTiny, tmp_path: Path) -> Canary:
    return Canary(start_tiny(), tmp_path)


def test_each_key_gets_its_arm_every_time_and_the_bare_name_the_active_version(
    canary: Canary,
) -> None:
    arms = canary.arms()
    assert set(arms.values()) == {"v1", "v2"}
    for _ in range(2):
        assert {key: canary.served(key) for key in KEYS} == arms
        assert canary.node.ask("a").completed.served.version == "v1"
    assert Counter(arms.values())["v1"] > len(KEYS) / 2
    canary.node.settle()


def test_both_versions_answer_in_one_batch_and_name_the_generation_that_splits(
    canary: Canary,
) -> None:
    arms = canary.arms()
    answers = {key: canary.node.ask("a", affinity_key=key, tokens=24) for key in KEYS[:12]}
    for key, answer in answers.items():
        served = answer.completed.served
        assert (served.version, served.generation) == (arms[key], canary.generation)
    canary.node.settle()


def test_a_reference_that_names_its_version_heeds_no_split(canary: Canary) -> None:
    for key in KEYS[:8]:
        assert canary.node.ask("a@v1", affinity_key=key).completed.served.version == "v1"
    canary.node.settle()


def test_an_adapter_without_a_split_answers_every_key_from_what_is_active(canary: Canary) -> None:
    generation = canary.node.publisher.rollback(DEFAULT_TENANT, "a", to="v2").gen
    for key in KEYS[:8]:
        served = canary.node.ask("a", affinity_key=key, min_generation=generation).completed.served
        assert (served.version, served.generation) == ("v2", generation)
    canary.node.settle()


def test_keys_cost_the_store_nothing_while_the_name_is_known_to_be_current(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in KEYS:
        canary.served(key)
    canary.node.ask("a").wait()
    gets: list[str] = []
    get = MemoryStore.get

    def counted(self: MemoryStore, key: str) -> bytes:
        gets.append(key)
        return get(self, key)

    monkeypatch.setattr(MemoryStore, "get", counted)
    for key in KEYS:
        canary.served(key)
    # The watcher may look at the log meanwhile, once in seconds.
    assert len(gets) < len(KEYS) / 4


def test_arms_keep_serving_while_the_store_is_away(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = Canary(start_tiny(max_staleness=0.0), tmp_path)
    arms = {key: canary.served(key) for key in KEYS[:12]}
    assert set(arms.values()) == {"v1", "v2"}

    def away(self: MemoryStore, key: str) -> bytes:
        raise StoreUnavailable("away")

    monkeypatch.setattr(MemoryStore, "get", away)
    assert {key: canary.served(key) for key in arms} == arms
    assert isinstance(
        canary.node.ask("a", affinity_key="x", min_generation=canary.generation + 1).error,
        StoreDown,
    )
    canary.node.settle()


def test_a_split_that_ends_leaves_a_running_answer_on_its_arm(canary: Canary) -> None:
    key = next(key for key, label in canary.arms().items() if label == "v2")
    undisturbed = canary.node.ask("a@v2", tokens=160).tokens
    running = canary.node.ask("a", affinity_key=key, tokens=160).wait(tokens=3)
    generation = canary.node.publisher.rollback(DEFAULT_TENANT, "a", to="v1").gen
    after = canary.node.ask("a", affinity_key=key, min_generation=generation).wait()
    assert not running.ended, "the split must end while the first request runs"
    assert after.completed.served.version == "v1"
    assert running.tokens == undisturbed
    canary.node.settle()


def test_control_an_arm_that_takes_over_the_bare_name_is_caught(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded bug: what a key chose is adopted as what the name means."""
    loader = canary.node.engine._loader
    post = loader._post

    def adopting(event: LoaderEvent) -> None:
        if isinstance(event, Resolved) and event.arm is not None:
            event = Resolved(event.token, event.arm)
        post(event)

    canary.node.publisher.split(DEFAULT_TENANT, "a", {"v1": 1, "v2": 99})
    monkeypatch.setattr(loader, "_post", adopting)
    key = next(key for key, label in canary.arms().items() if label == "v2")
    canary.node.ask("a", affinity_key=key, min_generation=canary.generation + 1).wait()
    assert canary.node.ask("a").completed.served.version == "v2"


def test_control_a_node_that_draws_an_arm_anew_for_each_request_is_caught(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded bug: the request's own name chooses, not its affinity key."""
    choose = Loader.choose

    def drawn(self: Loader, token: str, *rest: object, ask: bool, trace: object) -> None:
        ref, min_generation, _ = rest
        choose(self, token, ref, min_generation, token, ask=ask)  # type: ignore[arg-type]

    monkeypatch.setattr(Loader, "choose", drawn)
    assert any({key: canary.served(key) for key in KEYS} != canary.arms() for _ in range(2))

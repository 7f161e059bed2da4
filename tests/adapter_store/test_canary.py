"""Who gets which arm of a split: the right shares, always the same arm, as few moves as can be."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from adapter_store.canary import choose_arm
from adapter_store.layout import AdapterRef, parse_ref
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind, SplitArm, VersionRef
from tests.adapter_store.publishing import ADAPTER, REF, TENANT, activate, publish, split, stage

PEOPLE = [f"user-{number}" for number in range(20_000)]


def record(weights: Mapping[str, int], **changes: str) -> Record:
    """A split over versions that differ only in name."""

    def arm(label: str, weight: int) -> SplitArm:
        digest = hashlib.sha256(label.encode()).hexdigest()
        return SplitArm(weight, VersionRef(label, digest, "", {}, ()))

    arms = tuple(arm(label, weight) for label, weight in weights.items())
    made = Record(
        tenant="acme",
        adapter="tone",
        gen=3,
        kind=RecordKind.SPLIT,
        active=arms[0].version,
        split=arms,
        parent="",
        fence=1,
        txid="",
        attempt=1,
        actor="",
        time="",
    )
    return replace(made, **changes)


Chosen = dict[str, str]


def chosen(weights: Mapping[str, int], **changes: str) -> Chosen:
    """The label each of PEOPLE gets."""
    made = record(weights, **changes)
    return {person: choose_arm(made, person).label for person in PEOPLE}


def moves(before: Chosen, after: Chosen) -> Counter[tuple[str, str]]:
    pairs = ((before[person], after[person]) for person in PEOPLE)
    return Counter((old, new) for old, new in pairs if old != new)


@pytest.mark.parametrize(
    "weights",
    [
        {"v1": 95, "v2": 5},
        {"v1": 1, "v2": 1},
        {"v1": 999, "v2": 1},
        {"a": 50, "b": 30, "c": 20},
        {str(n): n + 1 for n in range(8)},
    ],
)
def test_every_arm_gets_its_share(weights: dict[str, int]) -> None:
    counts = Counter(chosen(weights).values())
    for label, weight in weights.items():
        share = weight / sum(weights.values())
        spread = (len(PEOPLE) * share * (1 - share)) ** 0.5
        assert abs(counts[label] - len(PEOPLE) * share) < 4 * spread


def test_raising_a_weight_only_moves_people_to_that_arm_and_lowering_it_back() -> None:
    shares = [1, 5, 20, 50, 80, 100]
    steps = [chosen({"v1": 100, "v2": share, "v3": 30}) for share in shares]
    for before, after in itertools.pairwise(steps):
        up = moves(before, after)
        assert {new for _, new in up} == {"v2"}
        assert {old for old, _ in up} == {"v1", "v3"}
        assert {old for old, _ in moves(after, before)} == {"v2"}


def test_an_arm_that_joins_or_leaves_moves_nobody_between_the_others() -> None:
    two, three = chosen({"v1": 60, "v2": 40}), chosen({"v1": 60, "v2": 40, "v3": 20})
    assert {new for _, new in moves(two, three)} == {"v3"}
    assert {old for old, _ in moves(three, two)} == {"v3"}


def test_the_same_weights_in_other_units_or_order_move_nobody() -> None:
    before = chosen({"v1": 95, "v2": 5})
    assert not moves(before, chosen({"v2": 5, "v1": 95}))
    assert not moves(before, chosen({"v1": 19, "v2": 1}))


def naive(made: Record, affinity: str) -> VersionRef:
    """The seeded bug: a hash, modulo the sum of the weights."""
    point = int(hashlib.sha256(affinity.encode()).hexdigest(), 16)
    point %= sum(arm.weight for arm in made.split)
    for arm in made.split:
        point -= arm.weight
        if point < 0:
            return arm.version
    raise AssertionError


@pytest.mark.parametrize(
    "promise",
    [
        test_raising_a_weight_only_moves_people_to_that_arm_and_lowering_it_back,
        test_an_arm_that_joins_or_leaves_moves_nobody_between_the_others,
        test_the_same_weights_in_other_units_or_order_move_nobody,
    ],
)
def test_a_choice_that_shuffles_people_is_caught(
    promise: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "choose_arm", naive)
    with pytest.raises(AssertionError):
        promise()


def test_adapters_and_tenants_draw_independently() -> None:
    """Whoever is in one canary must not be in all of them."""
    half = {"v1": 1, "v2": 1}
    one = chosen(half)
    for other in (chosen(half, adapter="other"), chosen(half, tenant="other")):
        same = sum(one[person] == other[person] for person in PEOPLE)
        assert abs(same - len(PEOPLE) / 2) < 4 * (len(PEOPLE) / 4) ** 0.5


def test_every_machine_chooses_alike() -> None:
    """Fixed answers, and those of a process with another hash seed."""
    made = record({"v1": 3, "v2": 1})
    assert [choose_arm(made, key).label for key in ("a", "b", "c", "d", "ö", "0")] == [
        "v2",
        "v1",
        "v1",
        "v1",
        "v1",
        "v1",
    ]
    program = (
        "from tests.adapter_store.test_canary import *;"
        "print([choose_arm(record({'v1': 3, 'v2': 1}), k).label for k in PEOPLE[:50]])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == str([choose_arm(made, key).label for key in PEOPLE[:50]])


@pytest.fixture
def reader() -> Reader:
    """v1 and v2 split in halves, v2 active, v3 staged."""
    store = MemoryStore()
    publish(store, 1)
    publish(store, 2)
    stage(store, 3)
    split(store, {"v1": 1, "v2": 1})
    return Reader(store)


def test_a_reader_gives_each_key_its_arm_and_everybody_else_the_active_version(
    reader: Reader,
) -> None:
    found = {key: reader.resolve(REF, affinity=key).version.label for key in PEOPLE[:200]}
    assert set(found.values()) == {"v1", "v2"}
    head = reader.head(TENANT, ADAPTER)
    assert all(choose_arm(head, key).label == label for key, label in found.items())
    for _ in range(3):
        assert reader.resolve(REF).version.label == "v2"
        assert reader.resolve(REF, affinity="").version.label == "v2"
    assert reader.resolve(REF, affinity=PEOPLE[0]).gen == 4


@pytest.mark.parametrize("text", ["v1", "v3"])
def test_a_pinned_version_is_what_was_pinned_whatever_the_key(reader: Reader, text: str) -> None:
    ref: AdapterRef = parse_ref(f"{ADAPTER}@{text}")
    assert {reader.resolve(ref, affinity=key).version.label for key in PEOPLE[:20]} == {text}


def test_promoting_an_arm_gives_it_to_everybody(reader: Reader) -> None:
    store = reader._store
    assert isinstance(store, MemoryStore)
    activate(store, label="v1")
    assert {reader.resolve(REF, affinity=key).version.label for key in PEOPLE[:20]} == {"v1"}

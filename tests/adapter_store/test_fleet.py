"""What nodes tell survives its encoding, and what they would never tell is not believed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from adapter_store.fleet import (
    Holding,
    NodeCard,
    Standing,
    State,
    decode_card,
    decode_holding,
    encode_card,
    encode_holding,
    residency_digest,
)
from adapter_store.fleet_view import FleetWatch
from tests.adapter_store.fleet_cards import card, digest, holding

TONE = ("default", "tone")


def test_a_card_and_a_holding_are_read_as_they_were_told() -> None:
    told = card("50051", state=State.DRAINING)
    assert decode_card(encode_card(told)) == told
    held = holding("tone", 3, "v1", v1=Standing.DEVICE, v2=Standing.COMING, v3="no room")
    assert decode_holding(TONE, encode_holding(held)) == held


@pytest.mark.parametrize(
    "spoil",
    [
        {"address": "a\x1b[2Jb"},
        {"address": "a" * 300},
        {"running": -1},
        {"running": "3"},
        {"state": "asleep"},
        {"unheard": 1},
        {"model": None},
    ],
)
def test_a_card_that_no_node_would_tell_is_as_if_it_were_not_there(
    spoil: dict[str, object],
) -> None:
    value = json.loads(encode_card(card("50051")))
    assert decode_card(json.dumps({**value, **spoil})) is None
    for text in ("", "[]", "null", "1", "{}", "[" * 100_000):
        assert decode_card(text) is None


@pytest.mark.parametrize(
    "spoil",
    [
        {"generation": "3"},
        {"generation": -1},
        {"generation": True},
        {"digest": "xyz"},
        {"copies": {"no digest": ["v1", "device"]}},
        {"copies": {digest("v1"): ["../v1", "device"]}},
        {"copies": {digest("v1"): ["v1", "asleep"]}},
        {"copies": {digest("v1"): ["v1", "failed", "\x1b[2J"]}},
        {"copies": {digest("v1"): ["v1", "failed", "a", "b"]}},
        {"copies": []},
    ],
)
def test_a_holding_that_no_node_would_tell_is_as_if_it_were_not_there(
    spoil: dict[str, object],
) -> None:
    value = json.loads(encode_holding(holding("tone", 3, "v1", v1=Standing.DEVICE)))
    assert decode_holding(TONE, json.dumps({**value, **spoil})) is None
    assert decode_holding(("default", "../tone"), json.dumps(value)) is None


def test_the_digest_of_a_residency_moves_with_any_holding_and_with_nothing_else() -> None:
    one = holding("tone", 3, "v1", v1=Standing.DEVICE)
    two = holding("voice", 1, "v1", v1=Standing.DEVICE)
    assert residency_digest([one, two]) == residency_digest([two, one])
    changed = [
        [one],
        [one, replace(two, generation=2)],
        [one, holding("voice", 1, "v1", v1=Standing.HOST)],
        [one, replace(two, adapter="voices")],
    ]
    assert len({residency_digest(each) for each in [[one, two], *changed]}) == 5


@dataclass
class Told:
    """A registry in memory that counts what is read."""

    cards: list[NodeCard]
    held: dict[str, list[Holding]]
    reads: list[str] = field(default_factory=list)

    def nodes(self) -> list[NodeCard]:
        return self.cards

    def holdings(self, node: str) -> list[Holding]:
        self.reads.append(node)
        return self.held[node]


def test_nodes_apart_are_seen_apart_and_unchanged_ones_are_not_read_again() -> None:
    told = Told(
        [card("1"), card("2"), card("3")],
        {
            "1": [holding("tone", 4, "v2"), holding("voice", 1, "v1")],
            "2": [holding("tone", 3, "v1")],
            "3": [holding("tone", 0, "", v2=Standing.HOST)],
        },
    )
    watch = FleetWatch(told)
    fleet = watch.look()
    assert [(one.name[1], one.skew, dict(one.generations)) for one in fleet.spreads()] == [
        ("tone", 1, {"1": 4, "2": 3}),
        ("voice", 0, {"1": 1}),
    ]
    assert [one.name[1] for one in fleet.skewed()] == ["tone"]
    told.held["2"] = [holding("tone", 4, "v2")]
    told.cards[1] = replace(told.cards[1], residency=digest("moved"))
    assert watch.look().skewed() == []
    assert told.reads == ["1", "2", "3", "2"]

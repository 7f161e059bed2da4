"""A node tells the fleet what it has, again when it was forgotten, and never waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from adapter_store.arms import ArmCount, Arms
from adapter_store.errors import FleetUnseen
from adapter_store.fleet import Holding, Name, NodeCard, Standing, State, residency_digest
from adapter_store.registry import LEASE_S
from inference_node.client import Client
from inference_node.errors import Draining
from inference_node.rpc import herald
from inference_node.rpc.herald import HEARTBEAT, Herald, Identity
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import Membership, reached_at
from inference_node.rpc.tally import Tally
from tests.adapter_store.fleet_cards import holding
from tests.adapter_store.waiting import wait_until
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.rpc.scripted_control import ScriptedControl
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

TONE = holding("tone", 3, "v1", v1=Standing.DEVICE)
VOICE = holding("voice", 1, "v1", v1=Standing.DEVICE)


@dataclass
class Memory:
    """A registry that can be away or forget."""

    cards: dict[str, NodeCard] = field(default_factory=dict)
    held: dict[Name, Holding] = field(default_factory=dict)
    arms: dict[Name, Arms] = field(default_factory=dict)
    away: bool = False
    calls: list[str] = field(default_factory=list)

    def announce(self, card: NodeCard) -> bool:
        self._call("announce")
        self.cards[card.id] = card
        return bool(self.held)

    def tell(
        self, node: str, changed: Sequence[Holding], gone: Iterable[Name], *, anew: bool
    ) -> None:
        self._call("tell")
        if anew:
            self.held.clear()
        self.held |= {one.name: one for one in changed}
        for name in gone:
            self.held.pop(name)

    def tell_arms(self, node: str, arms: Mapping[Name, Arms], gone: Iterable[Name]) -> None:
        self._call("arms")
        self.arms.update(arms)
        for name in gone:
            self.arms.pop(name)

    def leave(self, node: str) -> None:
        self._call("leave")
        self.cards.pop(node, None)

    def _call(self, what: str) -> None:
        if self.away:
            raise FleetUnseen("away")
        self.calls.append(what)


@dataclass
class Desk:
    """A herald whose turns the test takes."""

    memory: Memory = field(default_factory=Memory)
    control: ScriptedControl = field(default_factory=ScriptedControl)
    now: float = 100.0
    arms: dict[Name, Arms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.herald = Herald(
            self.memory,
            Identity("n1", "127.0.0.1:50051"),
            control=self.control,
            info=ScriptedEngine().info,
            tally=Tally(),
            arms=lambda: self.arms,
            clock=lambda: self.now,
        )

    def turn(self, *held: Holding) -> list[str]:
        """What was called for it."""
        self.control.held = held
        before = len(self.memory.calls)
        self.herald.turn()
        return self.memory.calls[before:]

    @property
    def told(self) -> list[Holding]:
        return list(self.memory.held.values())


def test_only_what_changed_is_told_and_a_quiet_node_only_renews_its_lease() -> None:
    desk = Desk()
    assert desk.turn(TONE, VOICE) == ["tell", "announce"]
    assert desk.turn(TONE, VOICE) == []
    desk.now += HEARTBEAT
    assert desk.turn(TONE, VOICE) == ["announce"]
    moved = holding("tone", 4, "v2", v2=Standing.DEVICE)
    assert desk.turn(moved) == ["tell", "announce"]
    assert desk.told == [moved]
    card = desk.memory.cards["n1"]
    assert (card.residency, card.adapters) == (residency_digest([moved]), 1)


def test_what_redis_forgot_is_told_again_with_the_next_renewal() -> None:
    desk = Desk()
    desk.turn(TONE, VOICE)
    desk.memory.held.clear()
    desk.now += HEARTBEAT
    desk.turn(TONE, VOICE)
    assert desk.told == [TONE, VOICE]


def test_what_changed_while_redis_was_away_is_told_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = Desk()
    desk.turn(TONE, VOICE)
    desk.memory.away = True
    for _ in range(3):
        assert desk.turn(VOICE) == []
    desk.memory.away = False
    desk.turn(VOICE)
    assert desk.told == [VOICE]
    assert caplog.text.count("does not hear of this node") == 1


def test_control_a_herald_that_forgets_its_own_loss_leaves_the_fleet_with_old_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    desk.turn(TONE, VOICE)
    monkeypatch.setattr(desk.memory, "announce", lambda card: True)
    desk.memory.held.clear()
    desk.now += HEARTBEAT
    desk.turn(TONE, VOICE)
    assert desk.told == []


def test_a_stopping_engine_ends_no_lease_before_the_node_leaves() -> None:
    desk = Desk()
    desk.turn(TONE)
    desk.control.fails = Draining("stopping")
    desk.herald.drain()
    desk.now += HEARTBEAT
    assert desk.turn() == ["announce"]
    assert desk.memory.cards["n1"].state is State.DRAINING
    assert desk.told == [TONE]


def test_an_engine_that_is_busy_for_long_does_not_end_its_nodes_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    desk.turn(TONE)
    monkeypatch.setattr(desk.control, "holdings", Future)
    monkeypatch.setattr(herald, "LOOK_SECONDS", 0.0)
    desk.now += HEARTBEAT
    assert desk.turn() == ["announce"]
    assert desk.told == [TONE]


def test_a_look_at_a_busy_engine_is_over_before_the_lease_is() -> None:
    assert HEARTBEAT + herald.PERIOD + herald.LOOK_SECONDS < LEASE_S


def test_a_server_is_in_the_fleet_from_its_start_to_its_end() -> None:
    memory, control = Memory(), ScriptedControl()
    control.held = (TONE,)
    fleet = Membership(memory, "n1")
    with running_server(ScriptedEngine(), CONFIG, control=control, fleet=fleet) as server:
        wait_until(lambda: "n1" in memory.cards)
        assert memory.cards["n1"].address == f"127.0.0.1:{server.port}"
        assert memory.held == {TONE.name: TONE}
    assert memory.cards == {}


def test_a_server_whose_fleet_is_away_answers_and_leaves_all_the_same() -> None:
    fleet = Membership(Memory(away=True), "n1")
    with (
        running_server(ScriptedEngine(), CONFIG, control=ScriptedControl(), fleet=fleet) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        assert client.generate("hi").text


@pytest.mark.parametrize(
    ("config", "address"),
    [
        (ServerConfig(listen="127.0.0.1:0"), "127.0.0.1:7"),
        (ServerConfig(listen="[::1]:0"), "[::1]:7"),
        (ServerConfig(listen="unix:/run/node"), "unix:/run/node"),
        (ServerConfig(listen="127.0.0.1:0", advertise="node-1.example:443"), "node-1.example:443"),
    ],
)
def test_clients_are_sent_where_the_node_is_reached(config: ServerConfig, address: str) -> None:
    assert reached_at(config, 7) == address


def test_a_node_that_listens_everywhere_is_reached_by_its_host_name() -> None:
    everywhere = ServerConfig(listen="0.0.0.0:0", insecure=True)
    host, _, port = reached_at(everywhere, 7).rpartition(":")
    assert (bool(host), host != "0.0.0.0", port) == (True, True, "7")


def test_how_versions_do_is_told_with_each_renewal_and_again_when_it_was_lost() -> None:
    desk = Desk()
    arms = {TONE.name: {"a" * 64: ArmCount(completed=1), "b" * 64: ArmCount(failed=1)}}
    desk.arms = dict(arms)
    assert desk.turn(TONE) == ["tell", "announce", "arms"]
    assert desk.memory.arms == arms
    desk.now += HEARTBEAT
    assert desk.turn(TONE) == ["announce"]
    desk.memory.held.clear()
    desk.memory.arms.clear()
    desk.now += HEARTBEAT
    assert desk.turn(TONE) == ["announce", "tell", "arms"]
    assert desk.memory.arms == arms
    desk.arms = {}
    desk.now += HEARTBEAT
    assert desk.turn(TONE) == ["announce", "arms"]
    assert desk.memory.arms == {}, "what the node forgot takes no room in Redis"

"""A flip waits for the nodes that matter, for as long as it was told, and says who is late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from adapter_store.barrier import Barrier, Quorum, Readiness, Stand, Subject, parse_quorum
from adapter_store.errors import InvalidSetting, NotReady
from adapter_store.fleet import Holding, NodeCard, Standing, State
from tests.adapter_store.fleet_cards import BASE, card, digest, holding

SUBJECT = Subject("default", "tone", 4, BASE, digest("v2"))


def old(generation: int = 3) -> Holding:
    """A node that serves v1 and has nothing of v2."""
    return holding("tone", generation, "v1", v1=Standing.DEVICE)


def with_v2(standing: Standing | str) -> Holding:
    return holding("tone", 3, "v1", v1=Standing.DEVICE, v2=standing)


def flipped() -> Holding:
    return holding("tone", 5, "v2", v1=Standing.DEVICE, v2=Standing.DEVICE)


@dataclass
class Scene:
    """A fleet, and a clock that moves as the barrier sleeps."""

    held: dict[str, Holding]
    cards: list[NodeCard] = field(default_factory=list)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    asked: list[tuple[float, list[str]]] = field(default_factory=list)
    shown: list[Readiness] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.cards = self.cards or [card(node) for node in ("1", "2", "3")]

    def nodes(self) -> list[NodeCard]:
        return self.cards

    def holdings_of(
        self, nodes: Sequence[str], tenant: str, adapter: str, /
    ) -> Mapping[str, Holding]:
        return {node: self.held[node] for node in nodes if node in self.held}

    def ask_ahead(self, nodes: Sequence[str], tenant: str, adapter: str, gen: int, /) -> None:
        self.asked.append((self.now, list(nodes)))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [what for at, what in self.later if at <= self.now]
        self.later = [one for one in self.later if one[0] > self.now]
        for what in due:
            what()

    def barrier(self, *, spread: int = 1) -> Barrier:
        return Barrier(self, SUBJECT, spread=spread, clock=lambda: self.now, sleep=self.sleep)

    def wait(self, quorum: str = "all", *, timeout_s: float = 10.0) -> Readiness:
        return self.barrier().wait(
            parse_quorum(quorum), timeout_s=timeout_s, show=self.shown.append
        )

    def at(self, when: float, node: str, held: Holding) -> None:
        self.later.append((when, lambda: self.held.update({node: held})))


def waits(scene: Scene, quorum: str = "all") -> float:
    scene.wait(quorum)
    return scene.now


def test_a_flip_waits_for_the_last_of_the_nodes_that_hold_the_adapter() -> None:
    scene = Scene({"1": with_v2(Standing.DEVICE), "2": old()})
    scene.at(3.0, "2", with_v2(Standing.COMING))
    scene.at(6.0, "2", with_v2(Standing.HOST))
    seen = scene.wait()
    assert scene.now == pytest.approx(6.0)
    assert [stand.node for stand in seen.ready] == ["1", "2"], "the third holds nothing of it"
    assert scene.asked == [(0.0, ["2"]), (5.0, ["2"])]
    assert len(scene.shown[0].waiting) == 1


def test_control_a_barrier_that_takes_a_fetch_for_readiness_waits_too_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Stand, "ready", property(lambda stand: stand.standing is not None))
    scene = Scene({"1": with_v2(Standing.DEVICE), "2": with_v2(Standing.COMING)})
    scene.at(6.0, "2", with_v2(Standing.HOST))
    assert waits(scene) == 0.0


def test_a_quorum_waits_for_so_many_and_no_more() -> None:
    expected = {"all": 4.0, "2": 2.0, "1": 0.0, "0": 0.0, "66%": 2.0, "67%": 4.0}
    for quorum, seconds in expected.items():
        scene = Scene({"1": with_v2(Standing.HOST), "2": old(), "3": old()})
        scene.at(2.0, "2", with_v2(Standing.HOST))
        scene.at(4.0, "3", with_v2(Standing.DEVICE))
        # Of three nodes 66 % is not two of them, but more than one.
        assert waits(scene, quorum) == pytest.approx(seconds), quorum


@pytest.mark.parametrize("text", ["", "most", "-1", "1.5", "101%", "%", "٣", "1 %", "99999999"])
def test_what_is_no_quorum_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="quorum"):
        parse_quorum(text)


def test_a_share_is_never_rounded_down() -> None:
    assert [Quorum(percent=80).of(nodes) for nodes in range(6)] == [0, 1, 2, 3, 4, 4]
    assert [Quorum(percent=percent).of(100) for percent in range(101)] == list(range(101))
    assert Quorum(count=5).of(3) == 3


def test_when_time_is_up_the_late_ones_are_named_and_nothing_is_activated() -> None:
    scene = Scene({"1": with_v2(Standing.DEVICE), "2": with_v2(Standing.COMING), "3": old()})
    with pytest.raises(NotReady) as caught:
        scene.wait(timeout_s=3.0)
    assert scene.now == pytest.approx(3.0)
    said = str(caught.value)
    assert "1 of 3 nodes have tone ready after 3 s, 3 are needed" in said
    assert "127.0.0.1:2 (fetching), 127.0.0.1:3 (not begun)" in said
    assert "--quorum" in caught.value.hint


def test_a_node_that_refuses_the_version_ends_the_wait_where_the_rest_is_too_few() -> None:
    held = {"1": with_v2(Standing.DEVICE), "2": with_v2("ADAPTER_CORRUPT"), "3": old()}
    scene = Scene(dict(held))
    with pytest.raises(NotReady, match="refuses it: ADAPTER_CORRUPT"):
        scene.wait()
    assert scene.now == 0.0
    scene = Scene(dict(held))
    scene.at(1.0, "3", with_v2(Standing.HOST))
    assert waits(scene, "2") == pytest.approx(1.0)


def test_nodes_that_leave_drain_or_serve_another_base_are_not_waited_for() -> None:
    cards = [card("1"), card("2", base="c" * 64), card("3", state=State.DRAINING)]
    scene = Scene({"1": with_v2(Standing.DEVICE), "2": old(), "3": old()}, cards)
    assert waits(scene) == 0.0
    scene = Scene({"1": with_v2(Standing.DEVICE), "2": old()})
    scene.later.append((4.0, lambda: scene.cards.pop(1) and None))
    assert waits(scene) == pytest.approx(4.0)


def test_an_adapter_that_nobody_holds_goes_to_the_same_nodes_each_time() -> None:
    chosen = [Scene({}).barrier(spread=2).look() for _ in range(2)]
    assert len(chosen[0].stands) == 2
    assert chosen[0] == chosen[1]
    held = Scene({"1": old()}).barrier(spread=2).look()
    assert [stand.generation for stand in held.stands if stand.node == "1"] == [3]
    assert len(held.stands) == 2
    assert len(Scene({}).barrier(spread=9).look().stands) == 3
    assert Scene({}).barrier(spread=0).look().stands == ()


def test_after_the_flip_the_nodes_are_seen_to_follow_or_the_watch_ends() -> None:
    scene = Scene({"1": with_v2(Standing.DEVICE), "2": with_v2(Standing.HOST), "3": old()})
    before = scene.barrier().look()
    scene.at(1.0, "1", flipped())
    scene.at(2.0, "2", flipped())
    seen = scene.barrier().confirm(5, nodes=before, timeout_s=5.0)
    assert (scene.now, len(seen.serving(5))) == (pytest.approx(2.0), 2)
    scene.at(2.0, "1", flipped())
    seen = scene.barrier().confirm(6, nodes=before, timeout_s=1.0)
    assert (scene.now, seen.serving(6)) == (pytest.approx(3.0), [])

"""Rates and swaps, worked out without a clock of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference_node.cli.board import SWAPS, WINDOW, Board, Rate
from inference_node.client import AdapterLoad, Load, PoolChange
from inference_node.request import Served
from inference_node.residency import LoadedVersion
from tests.inference_node.rpc.scripted_control import POOL, version
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

QUIET = Load(0, 0, 0, 0, 0, ())


def change(
    *changed: LoadedVersion, gone: tuple[Served, ...] = (), load: Load = QUIET
) -> PoolChange:
    return PoolChange(POOL, changed, gone, load)


def test_a_rate_is_of_the_window_and_silence_lowers_it() -> None:
    rate = Rate()
    assert rate.at(0.0) == 0.0
    for second in range(11):
        rate.note(float(second), second * 30)
    assert rate.at(10.0) == pytest.approx(30.0)
    assert rate.at(10.0 + WINDOW) < 16
    rate.note(11.0, 300)
    assert rate.at(11.0) < 30


def test_a_counter_of_a_node_that_started_anew_is_no_negative_rate() -> None:
    rate = Rate()
    rate.note(0.0, 1000)
    rate.note(1.0, 5)
    assert rate.at(1.0) == 0.0
    rate.note(2.0, 25)
    assert rate.at(2.0) == pytest.approx(20.0)


def test_tokens_are_counted_by_node_and_by_adapter() -> None:
    board = Board()
    for second, tokens in enumerate((0, 10, 20)):
        hot = (AdapterLoad("t", "ada", tokens), AdapterLoad("t", "idle", 7))
        board.take(change(load=Load(2, 1, 2 * tokens, 3, 1, hot)), at=float(second))
    assert board.tokens_per_second(2.0) == pytest.approx(20.0)
    assert board.hottest(2.0) == [(("t", "ada"), pytest.approx(10.0))]
    assert (board.running, board.waiting) == (2, 1)


def test_without_an_operators_view_the_callers_view_counts() -> None:
    board = Board()
    info = ScriptedEngine().info()
    board.take_info(replace(info, generated_tokens=100), at=0.0)
    board.take_info(replace(info, generated_tokens=150), at=1.0)
    assert board.tokens_per_second(1.0) == pytest.approx(50.0)
    assert (board.running, board.waiting) == (1, 2)
    document = board.document(1.0)
    assert (document["model"], document["pool"], document["versions"]) == ("scripted", None, [])


def test_a_name_that_comes_to_mean_another_version_is_a_swap() -> None:
    board = Board()
    first = version("ada", digest="a" * 64)
    board.take(change(first), at=0.0)
    board.take(change(replace(first, leases=2)), at=1.0)
    assert list(board.swaps) == []
    named = Served("default", "ada", "v2", 4, "b" * 64)
    second = replace(first, served=named, names=(named,))
    board.take(change(replace(first, names=()), second), at=2.0)
    (swap,) = board.swaps
    assert (swap.before, swap.after, swap.generation, swap.at) == ("v1", "v2", 4, 2.0)
    assert {each.served.digest[0] for each in board.versions} == {"a", "b"}
    board.take(change(gone=(first.served,)), at=3.0)
    assert [each.served.version for each in board.versions] == ["v2"]
    (told,) = board.document(3.0)["swaps"]
    assert told == {
        "tenant": "default",
        "adapter": "ada",
        "before": "v1",
        "after": "v2",
        "generation": 4,
    }


def test_only_the_last_swaps_are_remembered() -> None:
    board = Board()
    for number in range(3 * SWAPS):
        name = Served("default", "ada", f"v{number}", number + 1, f"{number:064x}")
        board.take(change(replace(version("ada"), served=name, names=(name,))), at=float(number))
    assert len(board.swaps) == SWAPS
    assert board.swaps[-1].after == f"v{3 * SWAPS - 1}"

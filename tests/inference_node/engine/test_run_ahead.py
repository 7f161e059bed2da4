"""A step that is launched before the tokens of the last are known gives what it gives after.

One device of these tests does its work when somebody waits for it and never before, the other as
soon as it is given: a step that needs anything the host has not read yet, or that is overwritten on
its way, answers wrongly on one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from adapter_store.memory import MemoryStore
from inference_node.config import EngineConfig
from inference_node.engine import early_draws
from inference_node.engine.early_draws import EarlyDraws
from inference_node.engine.runner import Flight, Runner
from inference_node.engine.sampler import uniform
from inference_node.engine.scheduler import Step
from inference_node.errors import EngineFailure, ModelFailure
from inference_node.model.batch import ForwardBatch
from inference_node.model.decoder import Decoder
from inference_node.model.graphs import DecodeGraphs, Draw, Queued
from inference_node.model.lane import AtOnce
from inference_node.model.static_batch import DecodeRow, StaticBatch
from inference_node.request import FinishReason, Sampling, Stopping
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.captured import Device, LateLane, install
from tests.inference_node.harness import Answer, Node, start_node
from tests.inference_node.tiny import make_adapter

NAMES = ("", "one", "two", "three")
RANKS = (3, 8, 20)
SIZES: dict[str, Any] = {"max_rows": 8, "max_context": 64, "kv_tokens": 1024}


class Ahead(NamedTuple):
    node: Node
    device: Device


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Engines that are built now run on it; as late as can be unless the test says otherwise."""
    return install(monkeypatch, getattr(request, "param", LateLane)())


@pytest.fixture(scope="module")
def ahead(
    plain: Node, tiny_config: EngineConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ahead]:
    """A node that runs ahead of a device as late as can be."""
    with pytest.MonkeyPatch.context() as patch:
        device = install(patch, LateLane())
        node = start_node(replace(tiny_config, **SIZES), MemoryStore())
        publish(node, tmp_path_factory.mktemp("ahead"))
        yield Ahead(node, device)
        node.close()


def publish(node: Node, folder: Path) -> None:
    for seed, name in enumerate(NAMES[1:]):
        made = make_adapter(folder / name, dict(node.card.modules), rank=RANKS[seed], seed=seed)
        node.publish(name, made)


def crowd(node: Node) -> list[Answer]:
    """Answers of several lengths that begin together."""
    return [
        node.ask(name, [5 + index, 6, 7], tokens=3 + 2 * index)
        for index, name in enumerate(NAMES * 2)
    ]


def tokens_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.wait().tokens for answer in answers]


@pytest.fixture(scope="module")
def plain(tiny_config: EngineConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose steps are not captured."""
    node = start_node(replace(tiny_config, kernels="reference", **SIZES), MemoryStore())
    publish(node, tmp_path_factory.mktemp("plain"))
    yield node
    node.close()


@pytest.fixture(scope="module")
def expected(plain: Node) -> list[list[int]]:
    """What `crowd` is answered step by step."""
    return tokens_of(crowd(plain))


def test_a_crowd_is_answered_as_it_is_step_by_step(expected: list[list[int]], ahead: Ahead) -> None:
    node, device = ahead
    before = device.carried
    assert tokens_of(crowd(node)) == expected
    node.settle()
    assert device.carried > before + 30, "most rows are launched before their token is known"
    assert "and layers" in node.engine.info().kernel, "in few launches"


@pytest.mark.parametrize("device", [AtOnce], indirect=True)
@pytest.mark.parametrize("run_ahead", [True, False])
def test_so_it_is_on_a_device_that_does_all_at_once_ahead_or_not(
    expected: list[list[int]],
    start_tiny: StartTiny,
    device: Device,
    tmp_path: Path,
    run_ahead: bool,
) -> None:
    node = start_tiny(run_ahead=run_ahead, **SIZES)
    publish(node, tmp_path)
    assert tokens_of(crowd(node)) == expected
    assert bool(device.carried) == run_ahead


def wrong_row(patch: pytest.MonkeyPatch) -> None:
    row = Runner._row

    def shifted(runner: Runner, sequence: object) -> DecodeRow:
        found = row(runner, sequence)  # type: ignore[arg-type]
        if found.source is None:
            return found
        source = (found.source + 1) % len(runner._rows)
        return DecodeRow(found.token, found.position, found.block_table, found.slot, source)

    patch.setattr(Runner, "_row", shifted)


def one_host_side(patch: pytest.MonkeyPatch) -> None:
    fill = StaticBatch.fill

    def same(batch: StaticBatch, step: Sequence[DecodeRow]) -> torch.Tensor:
        batch._hosts[1], batch._views[1] = batch._hosts[0], batch._views[0]
        return fill(batch, step)

    patch.setattr(StaticBatch, "fill", same)


def one_place_for_tokens(patch: pytest.MonkeyPatch) -> None:
    queue = DecodeGraphs.queue

    def same(
        graphs: DecodeGraphs, rows: Sequence[DecodeRow], *, draw: Draw | None = None
    ) -> Queued:
        graphs._read[1] = graphs._read[0]
        return queue(graphs, rows, draw=draw)

    patch.setattr(DecodeGraphs, "queue", same)


@pytest.mark.parametrize(
    ("fault", "device"),
    [(wrong_row, AtOnce), (one_host_side, LateLane), (one_place_for_tokens, AtOnce)],
    indirect=["device"],
)
def test_control_a_token_from_another_row_and_what_is_overwritten_on_its_way_are_seen(
    expected: list[list[int]],
    start_tiny: StartTiny,
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    fault(monkeypatch)
    node = start_tiny(**SIZES)
    publish(node, tmp_path / "ahead")
    assert tokens_of(crowd(node)) != expected


def test_whatever_ends_an_answer_ends_it_with_that_token(ahead: Ahead) -> None:
    node, device = ahead
    whole = node.ask("two", [5, 6, 7], tokens=12).wait().tokens
    stop = whole[4]
    first = whole.index(stop) + 1
    beside = node.ask("one", [8, 9], tokens=20)
    stopped = node.ask(
        "two", [5, 6, 7], stopping=Stopping(max_new_tokens=12, stop_token_ids=(stop,))
    )
    assert stopped.completed.finish_reason is FinishReason.STOP_SEQUENCE
    assert stopped.token_ids == whole[:first]
    assert stopped.completed.usage.completion_tokens == first
    full = node.ask("two", [5, 6, 7], stopping=Stopping(max_new_tokens=1000, ignore_eos=True))
    assert len(full.wait().tokens) == 64 - 3, "the context is full"
    assert full.completed.finish_reason is FinishReason.LENGTH
    assert len(beside.wait().tokens) == 20
    node.settle()
    assert device.carried


def test_who_gives_way_or_leaves_with_a_token_on_its_way_changes_nobodys_answer(
    expected: list[list[int]], start_tiny: StartTiny, device: Device, tmp_path: Path
) -> None:
    node = start_tiny(**SIZES | {"kv_tokens": 64, "block_tokens": 4})
    publish(node, tmp_path / "ahead")
    assert tokens_of(crowd(node)) == expected
    left = node.ask("three", [9, 9], tokens=40)
    with left.arrived:
        # Its next event makes the engine wait until all others are there, adapters and all.
        answers = crowd(node)
    left.wait(tokens=2)
    node.engine.cancel(left.request_id)
    assert tokens_of(answers) == expected
    assert left.error.reason == "CANCELLED"
    node.settle()
    assert node.engine._scheduler.preemptions
    assert device.carried


CHANCE = (
    Sampling(temperature=1.0, seed=7),
    Sampling(temperature=0.7, top_k=5, seed=8),
    Sampling(temperature=1.3, top_p=0.8, seed=9),
    Sampling(temperature=2.0, top_k=40, top_p=0.95, min_p=0.1, seed=2**31),
)


def by_chance(node: Node) -> list[list[int]]:
    """Beside answers of the likeliest tokens."""
    answers = crowd(node)[:4]
    answers += [node.ask("one", [9, 10], tokens=9, sampling=rules) for rules in CHANCE]
    return tokens_of(answers)


def test_rows_that_are_drawn_by_chance_draw_early_what_they_draw_late(
    plain: Node, ahead: Ahead
) -> None:
    node, device = ahead
    node.ask("one", [1]).wait()
    before = device.carried
    found = [node.ask("one", [9, 10], tokens=9, sampling=rules).wait().tokens for rules in CHANCE]
    assert device.carried >= before + 7 * len(CHANCE), "all but the first two tokens of each"
    assert by_chance(node)[4:] == found
    assert by_chance(plain)[4:] == found


def forgets_what_is_on_its_way(patch: pytest.MonkeyPatch) -> None:
    def point(sequence: object) -> float:
        return uniform(sequence.seed, sequence.produced)  # type: ignore[attr-defined]

    patch.setattr(early_draws, "_point", point)


def one_side_for_draws(patch: pytest.MonkeyPatch) -> None:
    prepare = EarlyDraws.prepare

    def same(draws: EarlyDraws, sequences: Sequence[object]) -> Draw | None:
        draws._hosts[1] = draws._hosts[0]
        return prepare(draws, sequences)  # type: ignore[arg-type]

    patch.setattr(EarlyDraws, "prepare", same)


@pytest.mark.parametrize("fault", [forgets_what_is_on_its_way, one_side_for_draws])
def test_control_a_draw_at_another_point_is_seen(
    plain: Node,
    start_tiny: StartTiny,
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    expected = by_chance(plain)
    fault(monkeypatch)
    node = start_tiny(**SIZES)
    publish(node, tmp_path / "early")
    assert by_chance(node) != expected


def test_rows_with_penalties_or_scores_wait_for_their_tokens(plain: Node, ahead: Ahead) -> None:
    node, device = ahead

    def asked(node: Node) -> list[list[int]]:
        answers = crowd(node)
        rules = Sampling(temperature=1.0, seed=7, repetition_penalty=3.0)
        answers.append(node.ask("one", [9, 10], tokens=9, sampling=rules))
        return tokens_of(answers)

    found = asked(node)
    assert device.carried
    assert found == asked(plain)


def test_what_a_prefix_left_in_the_cache_is_found_by_the_next_and_is_right(ahead: Ahead) -> None:
    node = ahead.node
    first = node.ask("one", [5, 6, 7], tokens=40).wait().tokens
    again = node.ask("one", [5, 6, 7, *first[:36]], tokens=4)
    assert again.wait().tokens == first[36:]
    assert again.completed.usage.cached_tokens >= 32


def test_a_step_that_cannot_be_launched_fails_after_the_tokens_before_it_came(
    start_tiny: StartTiny, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_tiny(**SIZES)
    whole = node.ask("", [5, 6, 7], tokens=10).wait().tokens
    launch, left = Runner.launch, iter([False, False, True])

    def refuse(runner: Runner, step: Step) -> Flight:
        if next(left, False):
            raise RuntimeError("out of memory")
        return launch(runner, step)

    monkeypatch.setattr(Runner, "launch", refuse)
    answer = node.ask("", [5, 6, 7], tokens=10)
    assert isinstance(answer.error, EngineFailure)
    assert answer.token_ids == whole[:3], "one of the prompt, two of steps on their way"
    assert node.ask("", [5, 6, 7], tokens=10).wait().tokens == whole
    node.settle()


def test_logits_that_are_not_finite_end_one_answer_and_no_other(
    start_tiny: StartTiny, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_tiny(**SIZES)
    publish(node, tmp_path / "ahead")
    whole = node.ask("one", [5, 6, 7], tokens=12).wait().tokens
    forward = Decoder.forward

    def broken(decoder: Decoder, batch: ForwardBatch) -> torch.Tensor:
        logits = forward(decoder, batch)
        bad = batch.positions[batch.logit_rows] == 9
        return logits.masked_fill(bad[:, None], torch.nan)

    monkeypatch.setattr(Decoder, "forward", broken)
    node.engine._runner._graphs._forward = node.engine._runner._decoder.forward  # type: ignore[union-attr]
    answers = [node.ask("one", [5, 6, 7], tokens=count) for count in (6, 12)]
    assert answers[0].wait().tokens == whole[:6]
    assert isinstance(answers[1].error, ModelFailure)
    assert answers[1].token_ids == whole[:7]
    node.settle()

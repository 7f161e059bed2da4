"""Answers by captured decode steps are those of steps that are run one by one.

Where there is no card a captured step is run again on the same inputs, which is what a graph does;
the kernels are the fused ones, interpreted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference_node.engine import build as build_module
from inference_node.model.batch import Decoded
from inference_node.model.graphs import DecodeGraphs, Step
from inference_node.model.lane import AtOnce
from inference_node.model.static_batch import DecodeRow, StaticBatch, StaticSizes
from inference_node.request import Sampling
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.captured import Device, Reruns, install
from tests.inference_node.harness import Node
from tests.inference_node.tiny import make_adapter

pytest.importorskip("triton")

ADAPTERS = ("one", "two", "three")
RANKS = (3, 8, 20)
SMALL = {"max_rows": 4, "max_context": 64, "kv_tokens": 512}


@pytest.fixture
def reruns(monkeypatch: pytest.MonkeyPatch) -> Reruns:
    """Engines that are built now capture their decode steps in this way."""
    choose, found = build_module.choose, Reruns()
    monkeypatch.setattr(
        build_module,
        "choose",
        lambda *q, **how: replace(choose(*q, **how), captures=True, pointwise=None),
    )
    monkeypatch.setattr(build_module, "CudaGraphs", lambda device: found)
    return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """As `reruns`, by the references, which take no interpreter."""
    return install(monkeypatch, AtOnce())


def publish_all(node: Node, folder: Path, names: tuple[str, ...] = ADAPTERS) -> None:
    for index, name in enumerate(names):
        made = make_adapter(
            folder / name, dict(node.card.modules), rank=RANKS[index % 3], seed=index
        )
        node.publish(name, made)


def answers(node: Node, names: tuple[str, ...] = ADAPTERS) -> list[list[int]]:
    asked = [node.ask(name, [5, 6, 7], tokens=3) for name in ("", *names)]
    asked.append(node.ask(names[0], [9, 10], tokens=3, sampling=Sampling(temperature=1.0, seed=7)))
    return [answer.wait().tokens for answer in asked]


def test_mixed_batches_answer_as_they_do_uncaptured(
    start_tiny: StartTiny, reruns: Reruns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = start_tiny(kernels="fused", **SMALL)
    publish_all(captured, tmp_path / "captured")
    found = answers(captured)
    assert reruns.recorded == 2 * 3, "1, 2 and 4 rows, with adapters and without"
    assert reruns.replayed
    monkeypatch.undo()
    plain = start_tiny(kernels="reference", **SMALL)
    publish_all(plain, tmp_path / "plain")
    assert found == answers(plain)


def test_nothing_is_captured_again_when_adapters_come_and_go(
    start_tiny: StartTiny, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"a{index}" for index in range(4))
    captured = start_tiny(pool_bytes=250_000, **SMALL | {"max_rows": 1})
    total = captured.engine._slots.allocator.total
    assert max(total) < sum(-(-RANKS[index % 3] // 8) for index in range(4)), "some must go"
    publish_all(captured, tmp_path / "captured", names)
    before = device.reruns.recorded
    found = [captured.ask(name, [5, 6], tokens=2).wait().tokens for name in names * 2]
    assert device.reruns.recorded == before
    monkeypatch.undo()
    plain = start_tiny(kernels="reference", **SMALL)
    publish_all(plain, tmp_path / "plain", names)
    assert found == [plain.ask(name, [5, 6], tokens=2).wait().tokens for name in names] * 2


def test_control_a_step_that_keeps_the_pages_of_the_step_before_is_seen(
    start_tiny: StartTiny, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = StaticBatch.fill

    def stale(batch: StaticBatch, step: list[DecodeRow]) -> torch.Tensor:
        kept = batch._views[0]["page0"].copy()
        filled = fill(batch, step)
        if any(row.slot is not None for row in step) and kept.any():
            batch._views[0]["page0"][:] = kept
        return filled

    monkeypatch.setattr(StaticBatch, "fill", stale)
    node = start_tiny(**SMALL)
    publish_all(node, tmp_path / "captured")
    first = node.ask("one", [5, 6, 7], tokens=4).wait().tokens
    second = node.ask("two", [5, 6, 7], tokens=4).wait().tokens
    monkeypatch.undo()
    plain = start_tiny(kernels="reference", **SMALL)
    publish_all(plain, tmp_path / "plain")
    assert first == plain.ask("one", [5, 6, 7], tokens=4).wait().tokens
    assert second != plain.ask("two", [5, 6, 7], tokens=4).wait().tokens


def test_a_step_that_cannot_be_captured_leaves_the_engine_running_uncaptured(
    start_tiny: StartTiny,
    reruns: Reruns,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(step: Step) -> tuple[Callable[[], None], Decoded]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(build_module, "CudaGraphs", lambda device: refuse)
    node = start_tiny(kernels="fused", **SMALL)
    assert "others run uncaptured: operation not permitted" in caplog.text
    assert len(node.ask("", [5, 6], tokens=2).wait().tokens) == 2
    assert not reruns.replayed


def test_more_rows_or_a_longer_context_than_was_captured_are_run_uncaptured() -> None:
    graphs = DecodeGraphs(lambda batch: torch.zeros(len(batch.token_ids), 4), Reruns())
    sizes = StaticSizes(groups=1, widest=1, blocks=2, block_tokens=4, spare_block=9)
    graphs.capture((1, 2), sizes, device=torch.device("cpu"))
    row = DecodeRow(1, 7, [1, 2], None)
    decoded = graphs.run([row, row])
    assert decoded is not None
    assert decoded.logits.shape == (2, 4)
    assert graphs.run([row] * 3) is None
    assert graphs.run([DecodeRow(1, 8, [1, 2, 3], None)]) is None

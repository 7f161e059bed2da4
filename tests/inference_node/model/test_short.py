"""Layers in few launches compute what transformers' own do, and serve only where that is seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from inference_node.config import EngineConfig
from inference_node.kernels.backend import Backend, choose
from inference_node.kernels.pointwise import REFERENCE
from inference_node.model.checkpoint import load_base
from inference_node.model.decoder import Decoder
from inference_node.model.graphs import Replay
from inference_node.model.layer_trial import choose_layers
from inference_node.model.short import ShortLayers
from inference_node.model.static_batch import StaticSizes
from tests.inference_node.engine.captured import ReferenceRows, Reruns
from tests.inference_node.model.layered import (
    BLOCK,
    BLOCKS,
    CONFIGS,
    CPU,
    SIZES,
    distance,
    furnish,
    logits_of_two_steps,
    save_model,
)

TOLERANCE = 1e-5
"""Of a row of logits, in float32."""
PLAIN = Backend("reference", rows=ReferenceRows(), pointwise=REFERENCE)
STEP = StaticSizes(groups=4, widest=8, blocks=4, block_tokens=BLOCK, spare_block=BLOCKS + 1)


def decoder_of(folder: Path, backend: Backend = PLAIN) -> Decoder:
    config = EngineConfig(base_model=str(folder), device="cpu", dtype="float32")
    return furnish(Decoder(load_base(config), linears="dense", backend=backend))


@pytest.fixture(scope="module", params=CONFIGS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("short")
    save_model(folder, CONFIGS[request.param])
    return decoder_of(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder, CONFIGS["llama"])
    return folder


def both(decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Short, and the model's own."""
    found = []
    for short in (True, False):
        decoder.be_short(short)
        found.append(logits_of_two_steps(decoder))
    return found[0], found[1]


def test_short_layers_give_the_logits_of_the_models_own(decoder: Decoder) -> None:
    assert distance(*both(decoder)) < TOLERANCE


def test_short_layers_in_triton_do_too(llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    backend = choose("fused", device=CPU, folder=tmp_path)
    assert backend.pointwise is not None
    assert (
        distance(*both(decoder_of(llama, replace(PLAIN, pointwise=backend.pointwise)))) < TOLERANCE
    )


class Faulty:
    """The reference with one operator that is subtly wrong."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        kept = x.clone() if self._fault == "the sum is not kept" else x
        return REFERENCE.add_norm(kept, delta, weight, eps)

    def rotate(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *to: Any) -> Any:
        sin = -sin if self._fault == "heads turn the other way" else sin
        if self._fault == "values are another row's":
            to[1].view(-1, *to[1].shape[2:])[to[2]] = 0
            _, kv_heads, dim = to[0].shape[1:]
            qkv = qkv.clone()
            qkv[:, -kv_heads * dim :] = qkv[:, -kv_heads * dim :].roll(1, 0)
        return REFERENCE.rotate(qkv, cos, sin, *to)

    def silu_times(self, gate_up: torch.Tensor) -> torch.Tensor:
        swapped = self._fault == "gate and up change places"
        return REFERENCE.silu_times(gate_up.roll(gate_up.shape[1] // 2, 1) if swapped else gate_up)


FAULTS = (
    "the sum is not kept",
    "heads turn the other way",
    "values are another row's",
    "gate and up change places",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_control_an_operator_that_is_subtly_wrong_is_seen_and_does_not_serve(
    llama: Path, fault: str
) -> None:
    faulty = decoder_of(llama, replace(PLAIN, pointwise=Faulty(fault)))
    assert distance(*both(faulty)) > 100 * TOLERANCE
    assert not tried(faulty, lambda short: 1.0 if short else 2.0), "however fast"


def test_layers_of_another_shape_cannot_be_short(tmp_path: Path) -> None:
    save_model(tmp_path, Qwen3Config(**SIZES))
    assert not decoder_of(tmp_path).can_be_short


def tried(decoder: Decoder, seconds: Callable[[bool], float]) -> bool:
    """Whether short layers serve after a trial in which they take so long, and the others."""
    calls = iter((False, True))

    def taken(replay: Replay) -> float:
        replay()
        return seconds(next(calls))

    choose_layers(decoder, STEP, max_rows=8, record=Reruns(), seconds=taken)
    assert not any(cache.any() for cache in decoder.caches), "nothing is left behind"
    return "and layers" in decoder.kernel


def test_short_layers_serve_where_they_are_faster_and_give_the_same(llama: Path) -> None:
    decoder = decoder_of(llama)
    assert tried(decoder, lambda short: 1.0 if short else 2.0)
    assert not tried(decoder, lambda short: 2.0 if short else 1.0)


def test_short_layers_that_fail_leave_the_models_own(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ShortLayers, "forward", refuse)
    decoder = decoder_of(llama)
    with caplog.at_level(logging.WARNING):
        choose_layers(decoder, STEP, max_rows=8, record=Reruns(), seconds=lambda _: 1.0)
    assert "no kernel image is available" in caplog.text
    assert "and layers" not in decoder.kernel
    assert logits_of_two_steps(decoder).isfinite().all()

"""Layers and steps run by native calls compute what transformers' own layers do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from inference_node.config import EngineConfig
from inference_node.kernels.backend import Backend, RowKernels, choose
from inference_node.kernels.greedy import likeliest
from inference_node.kernels.lora import LoraPlan
from inference_node.kernels.native import DecoderLayers, NoCompiler, WholeModel
from inference_node.kernels.quant4 import multiplies_bfloat16
from inference_node.model.batch import ForwardBatch
from inference_node.model.checkpoint import load_base
from inference_node.model.decoder import Decoder
from inference_node.model.fused import Angles
from inference_node.model.vocabulary import PanelEmbedding
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

ALL = 100
"""Tokens: more than any prompt here has."""
TOLERANCE = 2.0**-8
"""Of a row of logits: sums in another order, rounded to bfloat16 now and then to the other side."""

SPARE = 1
"""A token that no step of these tests holds."""

pytestmark = pytest.mark.skipif(not multiplies_bfloat16(CPU), reason="layers in C need AVX512-BF16")


class OnlyRows:
    """The native kernels for adapters, without those for layers."""

    def __init__(self, kernels: RowKernels) -> None:
        self.shrink_rows, self.expand_add_rows = kernels.shrink_rows, kernels.expand_add_rows


class Twin:
    """One checkpoint twice: layers through native calls, and transformers' own."""

    def __init__(self, folder: Path, config: PretrainedConfig) -> None:
        save_model(folder, config)
        try:
            backend = choose("native", device=CPU, folder=folder / "kernels")
        except NoCompiler as error:
            pytest.skip(str(error))
        assert backend.rows is not None
        self.native = self._decoder(folder, backend)
        self.plain = self._decoder(folder, replace(backend, rows=OnlyRows(backend.rows)))

    @property
    def fused(self) -> bool:
        return self.native._fused is not None

    def _decoder(self, folder: Path, backend: Backend) -> Decoder:
        config = EngineConfig(base_model=str(folder), device="cpu", dtype="bfloat16")
        return furnish(Decoder(load_base(config), linears="nf4", backend=backend))

    def logits(self, decoder: Decoder, *, by_row: int = 1) -> torch.Tensor:
        return logits_of_two_steps(decoder, by_row=by_row)


@pytest.fixture(scope="module", params=CONFIGS)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin(tmp_path_factory.mktemp("twin"), CONFIGS[request.param])


@pytest.mark.parametrize("by_row", [1, ALL], ids=["prompts apart", "row by row"])
def test_layers_through_native_calls_give_the_logits_of_the_models_own(
    twin: Twin, by_row: int
) -> None:
    assert twin.fused
    assert "and layers" in twin.native.kernel
    found = twin.logits(twin.native, by_row=by_row)
    assert distance(found, twin.logits(twin.plain, by_row=by_row)) < TOLERANCE


def test_a_step_is_one_call_where_every_row_has_its_own_context(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("not one call, or one call of what sees a window")

    if twin.native.by_row > 1:
        monkeypatch.setattr(DecoderLayers, "before_attention", unexpected)
    else:
        monkeypatch.setattr(WholeModel, "forward", unexpected)
    twin.logits(twin.native, by_row=ALL)


@pytest.mark.parametrize("by_row", [1, ALL], ids=["prompts apart", "row by row"])
@pytest.mark.parametrize("adapters", [True, False], ids=["adapters", "none"])
def test_rows_that_nobody_asks_for_change_nothing(
    twin: Twin, by_row: int, adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not adapters:
        monkeypatch.setattr(LoraPlan, "build", lambda *_, **__: None)
    expected = twin.logits(twin.native, by_row=by_row)
    forward = twin.native.forward

    def few(batch: ForwardBatch) -> torch.Tensor:
        return forward(replace(batch, logit_rows=batch.logit_rows[2::3].clone()))

    monkeypatch.setattr(twin.native, "forward", few)
    found = twin.logits(twin.native, by_row=by_row)
    assert torch.equal(found, torch.cat([expected[:18][2::3], expected[18:][2::3]]))


def test_the_likeliest_tokens_are_those_of_the_logits(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decided(batch: ForwardBatch) -> torch.Tensor:
        decoded = twin.native.decide(batch)
        assert torch.equal(decoded.best, likeliest(decoded.logits))
        return decoded.logits

    expected = twin.logits(twin.native, by_row=ALL)
    monkeypatch.setattr(twin.native, "forward", decided)
    assert torch.equal(twin.logits(twin.native, by_row=ALL), expected)


@pytest.mark.parametrize("index", ["token_ids", "positions", "logit_rows"])
@pytest.mark.parametrize("value", [-1, 1000])
def test_an_index_out_of_its_range_is_refused_before_memory_is_read(
    twin: Twin, index: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if twin.native.by_row == 1:
        pytest.skip("a window: its steps are never one call")
    forward = twin.native.forward

    def out_of_range(batch: ForwardBatch) -> torch.Tensor:
        indices = getattr(batch, index).clone()
        indices[1] = value
        return forward(replace(batch, **{index: indices}))

    monkeypatch.setattr(twin.native, "forward", out_of_range)
    with pytest.raises(ValueError, match="out of its range"):
        twin.logits(twin.native, by_row=ALL)


def test_angles_that_are_kept_are_those_of_the_model() -> None:
    embedding = LlamaRotaryEmbedding(LlamaConfig(**SIZES))
    like, angles = torch.empty(1, dtype=torch.bfloat16), Angles()
    for end in (5, 7, 100):
        positions = torch.randperm(end)
        found = angles.upto(end, embedding=embedding, like=like)
        for kept, own in zip(found, embedding(like, positions[None]), strict=True):
            assert torch.equal(kept[positions], own[0])


@pytest.mark.parametrize("fault", ["angles", "scale", "order", "norm"])
def test_control_a_step_in_one_call_that_is_subtly_wrong_is_seen(
    twin: Twin, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if twin.native.by_row == 1:
        pytest.skip("a window: its steps are never one call")
    forward = WholeModel.forward

    def wrong(self: Any, *indices: Any, cos: Any, sin: Any) -> Any:
        return forward(self, *indices, cos=cos, sin=-sin if fault == "angles" else sin)

    monkeypatch.setattr(WholeModel, "forward", wrong)
    whole = twin.native._whole
    assert whole is not None
    model, layers = whole.native._model, whole.native._layers.structures
    kept, norm = type(layers).from_buffer_copy(layers), model.norm
    if fault == "scale":
        layers[1].scale *= 2
    if fault == "order":
        layers[0], layers[1] = kept[1], kept[0]
    if fault == "norm":
        model.norm = layers[1].norm_after
    try:
        found = twin.logits(twin.native, by_row=ALL)
    finally:
        layers[:], model.norm = kept[:], norm
    assert distance(found, twin.logits(twin.plain, by_row=ALL)) > 2 * TOLERANCE


@pytest.mark.parametrize("fault", ["angles", "values", "adapters"])
def test_control_a_layer_that_is_subtly_wrong_is_seen(
    twin: Twin, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begin = DecoderLayers.before_attention, DecoderLayers.begin

    def angles(self: Any, layer: int, x: Any, cos: Any, sin: Any) -> torch.Tensor:
        return before(self, layer, x, cos, -sin if layer else sin)

    def values(self: Any, layer: int, x: Any, cos: Any, sin: Any) -> torch.Tensor:
        q = before(self, layer, x, cos, sin)
        twin.native._cache.v[layer][1, 2] = 0
        return q

    def adapters(self: Any, lora: Any, attention: Any) -> None:
        begin(self, lora, attention)
        self.step.down.tiles = 0

    if fault == "adapters":
        monkeypatch.setattr(DecoderLayers, "begin", adapters)
    else:
        wrong = angles if fault == "angles" else values
        monkeypatch.setattr(DecoderLayers, "before_attention", wrong)
    assert distance(twin.logits(twin.native), twin.logits(twin.plain)) > 2 * TOLERANCE


def test_a_cache_that_is_made_anew_is_the_one_that_is_used(twin: Twin) -> None:
    expected = twin.logits(twin.native)
    twin.native.allocate_cache(blocks=BLOCKS, block_tokens=BLOCK)
    assert torch.equal(twin.logits(twin.native), expected)


@pytest.mark.parametrize("by_row", [1, ALL], ids=["prompts apart", "row by row"])
def test_a_row_that_is_not_finite_spoils_no_other_sequence(
    twin: Twin, by_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = twin.logits(twin.native, by_row=by_row)
    forward = twin.native.forward
    embedding = twin.native.base.model.get_input_embeddings()
    if isinstance(embedding, PanelEmbedding):
        pytest.skip("one weight at both ends: the token's own column is no number either")
    weight = embedding.weight.data
    kept = weight[SPARE].clone()
    weight[SPARE] = torch.nan

    def poisoned(batch: ForwardBatch) -> torch.Tensor:
        assert SPARE not in batch.token_ids
        tokens = batch.token_ids.clone()
        tokens[-1] = SPARE
        return forward(replace(batch, token_ids=tokens))

    monkeypatch.setattr(twin.native, "forward", poisoned)
    try:
        found = twin.logits(twin.native, by_row=by_row)
    finally:
        weight[SPARE] = kept
    # Attention spreads it over its own sequence: the last three rows of 18, and the last of 4.
    own = torch.tensor([False] * 15 + [True] * 3 + [False] * 3 + [True])
    assert found[17].isnan().all()
    assert torch.equal(found[~own], clean[~own])


@pytest.fixture
def poisoned(twin: Twin) -> Iterator[Twin]:
    """Every block of its caches holds what is no number."""
    for cache in twin.native.caches:
        cache.fill_(torch.nan)
    yield twin
    for cache in twin.native.caches:
        cache.zero_()


@pytest.mark.parametrize("by_row", [1, ALL], ids=["prompts apart", "row by row"])
def test_what_fresh_blocks_held_reaches_nobody(poisoned: Twin, by_row: int) -> None:
    poisoned.native.zero_blocks(list(range(BLOCKS + 1)))
    found = poisoned.logits(poisoned.native, by_row=by_row)
    expected = poisoned.logits(poisoned.plain, by_row=by_row)
    assert distance(found, expected) < TOLERANCE


def test_control_windows_see_blocks_that_are_not_zeroed(poisoned: Twin) -> None:
    if poisoned.native.by_row > 1:
        pytest.skip("whole contexts alone: no kernel reads past one")
    assert not poisoned.logits(poisoned.native).isfinite().all()


@pytest.mark.parametrize(
    "config", [Qwen3Config(**SIZES), LlamaConfig(**SIZES, hidden_act="gelu")], ids=["qwen3", "gelu"]
)
def test_layers_of_another_kind_stay_as_they_are(config: PretrainedConfig, tmp_path: Path) -> None:
    twin = Twin(tmp_path, config)
    assert not twin.fused
    assert "and layers" not in twin.native.kernel
    assert distance(twin.logits(twin.native), twin.logits(twin.plain)) < TOLERANCE

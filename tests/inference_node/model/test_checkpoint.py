"""A base is named by what it holds, and one that could not be served exactly is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    StableLmConfig,
    T5Config,
)

from inference_node.config import EngineConfig
from inference_node.errors import BadConfiguration, BaseModelUnavailable, UnsupportedModel
from inference_node.model import checkpoint
from inference_node.model.checkpoint import (
    checkpoint_folder,
    choose_device,
    choose_dtype,
    fingerprint,
    load_base,
    read_settings,
    refuse_unsupported,
)

WEIGHTS = "model.safetensors"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a configuration and two small tensors, beside a scalar and an odd size."""
    folder = tmp_path / "small"
    folder.mkdir()
    tensors = {
        "a.weight": torch.arange(12, dtype=torch.bfloat16).view(3, 4),
        "b.weight": torch.arange(7, dtype=torch.float32),
        "c.scale": torch.tensor(3.5),
    }
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 4}))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def flip_a_bit(tensors: dict[str, torch.Tensor]) -> None:
    tensors["a.weight"].view(torch.int16)[1, 2] ^= 1


def negate_a_zero(tensors: dict[str, torch.Tensor]) -> None:
    tensors["b.weight"][0] = -0.0


def swap_names(tensors: dict[str, torch.Tensor]) -> None:
    tensors["b.weight"], tensors["d.weight"] = tensors["b.weight"] + 1, tensors["b.weight"]


def change_the_last_value(tensors: dict[str, torch.Tensor]) -> None:
    tensors["b.weight"][-1] += 1


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["a.weight"] = tensors["a.weight"].reshape(4, 3)


def reinterpret(tensors: dict[str, torch.Tensor]) -> None:
    tensors["a.weight"] = tensors["a.weight"].view(torch.float16)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["b.weight"]


def change_the_scalar(tensors: dict[str, torch.Tensor]) -> None:
    tensors["c.scale"] += 1


@pytest.mark.parametrize(
    "change",
    [flip_a_bit, negate_a_zero, swap_names, reshape, reinterpret, drop, change_the_scalar],
)
def test_any_change_of_the_weights_changes_the_fingerprint(
    small: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    before = fingerprint(small)
    change_weights(small, change)
    assert fingerprint(small) != before


def test_a_change_of_the_configuration_changes_the_fingerprint(small: Path) -> None:
    before = fingerprint(small)
    change_config(small, rope_theta=1e6)
    assert fingerprint(small) != before


def test_who_saved_it_where_and_when_does_not_change_the_fingerprint(
    small: Path, tmp_path: Path
) -> None:
    before = fingerprint(small)
    moved = tmp_path / "elsewhere"
    shutil.copytree(small, moved)
    assert fingerprint(moved) == before
    change_config(
        moved,
        _name_or_path="/home/someone",
        transformers_version="0.0.0",
        torch_dtype="float16",
        dtype="float16",
    )
    (moved / "README.md").write_text("about")
    assert fingerprint(moved) == before


def test_how_the_weights_are_cut_into_files_does_not_change_the_fingerprint(small: Path) -> None:
    before = fingerprint(small)
    tensors = load_file(small / WEIGHTS)
    (small / WEIGHTS).unlink()
    for number, (name, tensor) in enumerate(reversed(tensors.items())):
        save_file({name: tensor}, small / f"part-{number}.safetensors", metadata={"format": "pt"})
    assert fingerprint(small) == before


def test_a_tensor_longer_than_one_read_is_covered_to_its_end(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fingerprint(small)
    monkeypatch.setattr(checkpoint, "_HASH_BYTES", 5)
    assert fingerprint(small) == whole
    change_weights(small, change_the_last_value)
    assert fingerprint(small) != whole


def test_another_quantisation_scheme_is_another_base(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(small)
    monkeypatch.setitem(checkpoint.QUANTISATION, "block", 128)
    assert fingerprint(small) != before


def test_a_folder_without_weights_has_no_fingerprint(small: Path) -> None:
    (small / WEIGHTS).unlink()
    with pytest.raises(BaseModelUnavailable, match="safetensors"):
        fingerprint(small)


LONG_ROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "short_factor": [1.0] * 64,
    "long_factor": [2.0] * 64,
    "original_max_position_embeddings": 128,
}
QWEN_WINDOW: dict[str, Any] = {"sliding_window": 64, "max_window_layers": 0}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(T5Config, "encoder-decoder", id="encoder-decoder"),
        pytest.param(Gemma3Config, "images", id="vision"),
        pytest.param(MixtralConfig, "mixtures of experts", id="mixtral"),
        pytest.param(Qwen3MoeConfig, "mixtures of experts", id="qwen3 moe"),
        pytest.param(DeepseekV3Config, "mixtures of experts", id="deepseek"),
        pytest.param(Qwen3NextConfig, "mixtures of experts", id="qwen3 next"),
        pytest.param(
            lambda: Qwen2Config(num_hidden_layers=1, layer_types=["linear_attention"]),
            "linear_attention",
            id="linear attention",
        ),
        pytest.param(
            lambda: Qwen2Config(num_hidden_layers=1, layer_types=["chunked_attention"]),
            "chunked_attention",
            id="chunked attention",
        ),
        pytest.param(
            lambda: Gemma3TextConfig(use_bidirectional_attention=True),
            "later tokens",
            id="bidirectional",
        ),
        pytest.param(MambaConfig, "max_position_embeddings", id="mamba"),
        pytest.param(
            lambda: LlamaConfig(rope_parameters={"rope_type": "proportional", "factor": 2.0}),
            "not known",
            id="a rope nobody knows",
        ),
        pytest.param(
            lambda: LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
            "dynamic",
            id="dynamic rope",
        ),
        pytest.param(
            lambda: Gemma3TextConfig(
                num_hidden_layers=1,
                layer_types=["full_attention"],
                sliding_window=None,
                rope_parameters={"full_attention": {"rope_type": "dynamic", "factor": 2.0}},
            ),
            "dynamic",
            id="dynamic rope of one type of layer",
        ),
        pytest.param(lambda: LlamaConfig(rope_parameters=LONG_ROPE), "longrope", id="longrope"),
        pytest.param(
            lambda: LlamaConfig.from_dict({"quantization_config": {"load_in_4bit": True}}),
            "already quantised",
            id="already quantised",
        ),
    ],
)
def test_what_could_not_be_served_exactly_is_refused_with_its_reason(
    make: Callable[[], Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        refuse_unsupported(make())
    assert caught.value.hint


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(LlamaConfig, id="llama"),
        pytest.param(
            lambda: LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0}),
            id="linear rope",
        ),
        pytest.param(Qwen2Config, id="qwen2"),
        pytest.param(
            lambda: Qwen2Config(use_sliding_window=False, **QWEN_WINDOW), id="qwen2 window off"
        ),
        pytest.param(Phi3Config, id="phi3"),
        pytest.param(lambda: MistralConfig(sliding_window=None), id="mistral without window"),
        pytest.param(MistralConfig, id="mistral"),
        pytest.param(Gemma2Config, id="gemma2"),
        pytest.param(Gemma3TextConfig, id="gemma3 text"),
        pytest.param(
            lambda: Qwen2Config(use_sliding_window=True, **QWEN_WINDOW), id="qwen2 window on"
        ),
    ],
)
def test_plain_decoders_are_not_refused(make: Callable[[], Any]) -> None:
    refuse_unsupported(make())


def test_a_folder_that_is_no_checkpoint_is_told_from_one_that_is_not_supported(
    tmp_path: Path,
) -> None:
    with pytest.raises(BaseModelUnavailable, match="not a transformers checkpoint"):
        read_settings(tmp_path)
    MixtralConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel):
        read_settings(tmp_path)


def test_a_model_that_cannot_be_served_is_refused_before_its_weights_are_looked_for(
    tmp_path: Path,
) -> None:
    StableLmConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(UnsupportedModel, match="StableLmForCausalLM has no pluggable attention"):
        load_base(EngineConfig(base_model=str(tmp_path), dtype="float32"))


def test_a_folder_is_taken_as_it_is_and_any_other_name_is_a_model_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(name: str, **_: Any) -> str:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)
    assert checkpoint_folder(str(tmp_path)) == tmp_path
    assert asked == []
    with pytest.raises(BaseModelUnavailable, match="neither a folder nor a model id"):
        checkpoint_folder("someone/something")
    assert asked == ["someone/something"]


def test_cuda_asked_for_and_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = EngineConfig(base_model="any", device="cuda")
    with pytest.raises(BadConfiguration, match="cuda"):
        choose_device(config)
    assert choose_device(EngineConfig(base_model="any")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "fast", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_the_compute_dtype_is_the_one_asked_for_or_what_the_machine_multiplies(
    asked: str, fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "multiplies_bfloat16", lambda device: fast)
    config = EngineConfig(base_model="any", dtype=asked)
    assert choose_dtype(config, torch.device("cpu")) is expected


def test_a_loaded_base_says_what_it_is(tiny_base: Path) -> None:
    base = load_base(EngineConfig(base_model=str(tiny_base), dtype="float32", max_context=4096))
    assert (base.name, base.architecture) == (tiny_base.name, "LlamaForCausalLM")
    assert base.fingerprint == fingerprint(tiny_base)
    assert base.max_context == 512
    assert base.dtype is torch.float32
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert hasattr(base.model.get_submodule("model.layers.0.mlp.down_proj").weight, "quant_state")

"""The frozen base: loaded in 4-bit NF4, named by a fingerprint of its configuration and weights.

Two nodes with the same fingerprint hold the same 4-bit values, whatever device they run on; an
adapter is published for one fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from inference_node.config import EngineConfig
from inference_node.errors import BadConfiguration, BaseModelUnavailable, UnsupportedModel
from inference_node.kernels.quant4 import multiplies_bfloat16
from inference_node.model.trace import Traced, trace

ATTENTION = "lorapool_paged"
QUANTISATION = {"type": "nf4", "block": 64, "double": False}
_HASH_BYTES = 1 << 24
_SUPPORTED_ROPE = {"default", "linear", "llama3", "yarn"}
_ROPE_BY_LENGTH = {"dynamic", "longrope"}
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base model and what it is called."""

    model: Any
    """A transformers causal LM in eval mode, its linears bitsandbytes Linear4bit."""
    name: str
    architecture: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    max_context: int
    traced: Traced


def choose_device(config: EngineConfig) -> torch.device:
    """The device asked for. Raises BadConfiguration when CUDA is asked for and absent."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BadConfiguration("device is cuda but no CUDA device is visible")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, float32 elsewhere, unless told."""
    if config.dtype != "auto":
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def load_base(config: EngineConfig) -> Base:
    """Load and quantise a checkpoint.

    Raises BaseModelUnavailable when there is none, UnsupportedModel with the reason when this
    engine could not serve it exactly.
    """
    device = choose_device(config)
    dtype = choose_dtype(config, device)
    folder = checkpoint_folder(config.base_model)
    settings = read_settings(folder)
    traced = trace(settings)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=False,
    )
    disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=quantisation,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=ATTENTION,
        )
    model.eval().requires_grad_(False)
    return Base(
        model=model,
        name=folder.name,
        architecture=type(model).__name__,
        fingerprint=fingerprint(folder),
        device=device,
        dtype=dtype,
        max_context=min(config.max_context, settings.max_position_embeddings),
        traced=traced,
    )


def read_settings(folder: Path) -> Any:
    """The checkpoint's configuration.

    Raises BaseModelUnavailable when there is none, UnsupportedModel when it cannot be served.
    """
    try:
        settings = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BaseModelUnavailable(f"{folder} is not a transformers checkpoint") from error
    refuse_unsupported(settings)
    return settings


def checkpoint_folder(base_model: str) -> Path:
    """The local folder of a checkpoint, downloaded by transformers when it is a model id."""
    folder = Path(base_model).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(
            snapshot_download(base_model, allow_patterns=["*.json", "*.safetensors", "*.model"])
        )
    except Exception as error:
        raise BaseModelUnavailable(
            f"{base_model!r} is neither a folder nor a model id that could be downloaded",
            hint="name a folder with config.json and *.safetensors",
        ) from error


def refuse_unsupported(settings: Any) -> None:
    """Raises UnsupportedModel, with the reason, for what a paged decoder cannot serve exactly.

    What only the model's own code shows is refused by `trace`.
    """
    for applies, reason, hint in _REFUSED:
        if applies(settings):
            raise UnsupportedModel(reason, hint=hint)
    layer_types = set(getattr(settings, "layer_types", None) or [])
    if odd := sorted(layer_types - _SUPPORTED_LAYERS):
        raise UnsupportedModel(
            f"layers of type {odd} are not served: their state is not keys and values by position",
            hint="serve a model whose layers all have full or sliding attention",
        )
    rope = getattr(settings, "rope_parameters", None) or {}
    # One set for all layers, or one for each type of layer.
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = each.get("rope_type", "default")
        if kind in _ROPE_BY_LENGTH:
            raise UnsupportedModel(
                f"RoPE of type {kind!r} changes with the length of the sequence",
                hint="serve the short-context variant, or set rope_type to yarn, linear or default "
                "in config.json if the model was trained so",
            )
        if kind not in _SUPPORTED_ROPE:
            raise UnsupportedModel(
                f"RoPE of type {kind!r} is not known to keep a token's angles for good",
                hint=f"known types: {', '.join(sorted(_SUPPORTED_ROPE))}",
            )


def _says(*names: str) -> Callable[[Any], bool]:
    return lambda settings: any(getattr(settings, name, None) for name in names)


_REFUSED: tuple[tuple[Callable[[Any], bool], str, str], ...] = (
    (
        _says("is_encoder_decoder"),
        "encoder-decoder models are not served",
        "serve a decoder-only model, such as Llama or Qwen",
    ),
    (
        _says("vision_config", "audio_config", "text_config"),
        "models that read images or sound are not served",
        "serve the text-only checkpoint of the family, such as gemma-3-1b-it",
    ),
    (
        _says("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        "mixtures of experts are not served",
        "serve a dense model of the family",
    ),
    (
        _says("use_bidirectional_attention"),
        "attention to later tokens is not served",
        "serve a causal language model",
    ),
    (
        _says("quantization_config"),
        "the checkpoint is already quantised",
        "name the folder of the original weights; the node quantises them to NF4 itself",
    ),
    (
        lambda settings: not getattr(settings, "max_position_embeddings", None),
        "the configuration names no max_position_embeddings",
        "serve a model with rotary positions, such as Llama or Qwen",
    ),
)
"""What a configuration alone gives away: (applies, reason, what to do)."""


def fingerprint(folder: Path) -> str:
    """sha256 over the configuration, every weight tensor and the quantisation scheme.

    Raises BaseModelUnavailable when the folder holds no safetensors.
    """
    settings = json.loads((folder / "config.json").read_bytes())
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        settings.pop(volatile, None)
    tensors = dict(sorted(_tensor_digests(folder)))
    if not tensors:
        raise BaseModelUnavailable(f"{folder.name} holds no *.safetensors", hint="convert it first")
    identity = {"config": settings, "tensors": tensors, "quantisation": QUANTISATION}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _tensor_digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                raw = tensor.reshape(-1).view(torch.uint8).numpy()
                for start in range(0, raw.size, _HASH_BYTES):
                    digest.update(raw[start : start + _HASH_BYTES])
                yield name, digest.hexdigest()

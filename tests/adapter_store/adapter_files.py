"""Small adapters and the base card they fit, built byte by byte without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapter_store.record import BaseCard
from adapter_store.validate import LocalAdapter, read_adapter_dir

IN, HIDDEN = 8, 16
CARD = BaseCard(
    fingerprint="ba5e" * 16,
    name="tiny",
    architecture="TinyForCausalLM",
    modules={
        f"model.layers.{layer}.self_attn.{leaf}": (HIDDEN if leaf == "q_proj" else IN, IN)
        for layer in (0, 1)
        for leaf in ("q_proj", "k_proj", "v_proj")
    },
)


def config(**changes: Any) -> dict[str, Any]:
    """What peft writes for a LoRA on q_proj and v_proj, with `changes` on top."""
    value = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 16,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    return {**value, **changes}


def tensors(
    *, rank: int = 4, leaves: tuple[str, ...] = ("q_proj", "v_proj"), seed: int = 0
) -> dict[str, np.ndarray]:
    """float32 factors for every module of CARD whose name ends in one of `leaves`."""
    random = np.random.default_rng(seed)
    found = {}
    for module, (out, width) in CARD.modules.items():
        if module.rsplit(".", 1)[-1] in leaves:
            for factor, shape in (("lora_A", (rank, width)), ("lora_B", (out, rank))):
                name = f"base_model.model.{module}.{factor}.weight"
                found[name] = random.standard_normal(shape).astype(np.float32)
    return found


def pack_header(header: object, data: bytes) -> bytes:
    """A safetensors file around any header: an object to encode, or the raw bytes of one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def header_of(arrays: Mapping[str, np.ndarray], *, dtype: str = "") -> dict[str, Any]:
    """The header of `arrays` laid end to end; bfloat16 comes as uint16 with `dtype` BF16."""
    names = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16"}
    header, start = {}, 0
    for name, array in arrays.items():
        end = start + array.nbytes
        header[name] = {
            "dtype": dtype or names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        start = end
    return header


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    data = b"".join(array.tobytes() for array in arrays.values())
    return pack_header({"__metadata__": {"format": "pt"}, **header_of(arrays)}, data)


def write_adapter(
    folder: Path, *, weights: bytes | None = None, config_body: bytes | None = None, seed: int = 0
) -> Path:
    """An adapter folder as peft leaves it, its README included."""
    folder.mkdir(parents=True, exist_ok=True)
    body = json.dumps(config(), indent=2).encode() if config_body is None else config_body
    (folder / "adapter_config.json").write_bytes(body)
    packed = pack(tensors(seed=seed)) if weights is None else weights
    (folder / "adapter_model.safetensors").write_bytes(packed)
    (folder / "README.md").write_text("# an adapter\n")
    return folder


def local_adapter(folder: Path, *, seed: int) -> LocalAdapter:
    """A valid adapter whose content depends on `seed` alone."""
    return read_adapter_dir(write_adapter(folder / f"adapter-{seed}", seed=seed), card=CARD)

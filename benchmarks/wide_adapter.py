"""Adapters of a chosen size that pass every check: random bfloat16 factors of rank 64."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from adapter_store.record import BaseCard

RANK, WIDTH = 64, 4096
MODULE_BYTES = 2 * RANK * WIDTH * 2


def card(modules: int) -> BaseCard:
    """A base with so many square linears."""
    sizes = {f"model.layers.{layer}.q_proj": (WIDTH, WIDTH) for layer in range(modules)}
    return BaseCard(fingerprint="ba5e" * 16, name="wide", architecture="Wide", modules=sizes)


def write_adapter(folder: Path, *, modules: int, seed: int) -> Path:
    """An adapter folder of `modules` MiB; equal seeds give equal content."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for layer in range(modules):
        for factor, shape in (("lora_A", (RANK, WIDTH)), ("lora_B", (WIDTH, RANK))):
            end = start + MODULE_BYTES // 2
            header[f"base_model.model.model.layers.{layer}.q_proj.{factor}.weight"] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [start, end],
            }
            start = end
    # Without the top exponent bit every value is finite and below 2.
    random = np.random.default_rng(seed)
    data = random.integers(0, 65536, start // 2, dtype=np.uint16) & 0xBFFF
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "wide",
        "r": RANK,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
    }
    folder.mkdir(parents=True)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(text)) + text + data.tobytes())
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder

"""Random adapters, as PEFT saves them: the same folders for every system."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

_CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
}


def write_adapter(
    folder: Path, modules: Mapping[str, tuple[int, int]], *, rank: int, seed: int
) -> Path:
    """`modules` maps a path to its (out, in). Every rank of every module changes the output."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (out, width) in modules.items():
        a = torch.randn(rank, width, generator=generator) * width**-0.5
        b = torch.randn(out, rank, generator=generator) * 0.02
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    leaves = sorted({path.rpartition(".")[2] for path in modules})
    config = {**_CONFIG, "target_modules": leaves, "r": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def parameters(modules: Mapping[str, tuple[int, int]], *, rank: int) -> int:
    return sum(rank * (out + width) for out, width in modules.values())

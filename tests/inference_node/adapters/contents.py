"""Adapters for a decoder of two layers and two groups, small enough to compare value by value."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save

from adapter_store.lora_config import CONFIG_FILE, LoraSpec
from adapter_store.tensor_file import WEIGHTS_FILE
from adapter_store.validate import AdapterTensors, check_content
from inference_node.kernels.lora import GroupShape, ModuleGroup, ModuleMap

MAP = ModuleMap(
    head="model.layers.",
    layers=2,
    groups=(
        ModuleGroup("q+k+v", (".attn.q", ".attn.k", ".attn.v"), GroupShape(12, (10, 6, 6))),
        ModuleGroup("down", (".mlp.down",), GroupShape(20, (12,))),
    ),
)
ALL = ("q", "k", "v", "down")


def adapter_files(
    rank: int,
    *,
    targets: tuple[str, ...] = ALL,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    alpha: int = 16,
    idle: bool = False,
) -> dict[str, bytes]:
    """What a publisher stored; `idle` leaves every B at zero, as before training."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (out, width) in MAP.modules().items():
        if path.rsplit(".", 1)[-1] in targets:
            a = torch.randn(rank, width, generator=generator)
            b = torch.randn(out, rank, generator=generator) * (not idle)
            tensors[f"base_model.model.{path}.lora_A.weight"] = a.to(dtype)
            tensors[f"base_model.model.{path}.lora_B.weight"] = b.to(dtype)
    config = spec(rank, targets=targets, alpha=alpha).allow_listed()
    return {WEIGHTS_FILE: save(tensors), CONFIG_FILE: json.dumps(config).encode()}


def spec(rank: int, *, targets: tuple[str, ...] = ALL, alpha: int = 16) -> LoraSpec:
    return LoraSpec(rank, alpha, False, tuple(sorted(targets)))


def content(
    rank: int,
    *,
    targets: tuple[str, ...] = ALL,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    alpha: int = 16,
) -> AdapterTensors:
    """The same, checked."""
    files = adapter_files(rank, targets=targets, dtype=dtype, seed=seed, alpha=alpha)
    allowed = spec(rank, targets=targets, alpha=alpha).allow_listed()
    return check_content(files, config=allowed, card_modules=MAP.modules())

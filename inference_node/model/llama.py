"""Decoder layers of Llama's shape, taken apart: what a way of our own to run them needs.

x += o(attention(rotated(qkv(norm(x)))))
x += down(silu(gate) * up), gate and up of norm(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from inference_node.kernels.lora import ModuleMap
from inference_node.model.layers import LoraGroup, LoraLinear

_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
_GROUPS = (
    (".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj"),
    (".self_attn.o_proj",),
    (".mlp.gate_proj", ".mlp.up_proj"),
    (".mlp.down_proj",),
)


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One layer's parts."""

    groups: tuple[LoraGroup, LoraGroup, LoraGroup, LoraGroup]
    """qkv, o, gate_up, down."""
    norms: tuple[torch.Tensor, torch.Tensor]
    """[hidden]: before attention, after it."""
    eps: float
    heads: int
    head_dim: int


def llama_layers(model: Any, modules: ModuleMap) -> list[LlamaLayer] | None:
    """Every layer, or None when the model is of another shape."""
    if tuple(group.tails for group in modules.groups) != _GROUPS:
        return None
    found = [
        _layer(model.get_submodule(f"{modules.head}{index}")) for index in range(modules.layers)
    ]
    layers = [layer for layer in found if layer is not None]
    return layers if len(layers) == len(found) else None


def _layer(layer: Any) -> LlamaLayer | None:
    if type(layer).__name__ not in _LAYERS or not _is_silu(layer.mlp.act_fn):
        return None
    linears = [layer.get_submodule(tails[0][1:]) for tails in _GROUPS]
    groups = tuple(linear.group for linear in linears if isinstance(linear, LoraLinear))
    if len(groups) < len(linears):
        return None
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    attention = layer.self_attn
    return LlamaLayer(
        groups=groups,  # type: ignore[arg-type]
        norms=(norms[0].weight.data, norms[1].weight.data),
        eps=norms[0].variance_epsilon,
        heads=groups[1].base.in_features // attention.head_dim,
        head_dim=attention.head_dim,
    )


def _is_silu(activation: Any) -> bool:
    probe = torch.linspace(-4, 4, 9)
    return torch.equal(activation(probe), torch.nn.functional.silu(probe))

"""Decoder layers of Llama's shape, run by two native calls each instead of forty operators.

transformers' own forward still drives the model: embeddings, rotary angles, the walk over the
layers, the last norm and the head. What is replaced is the forward of each layer, where every
product is a 4-bit one that the native kernels can call, and the result is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from inference_node.kernels.lora import GroupPool, LoraPlan, ModuleMap
from inference_node.kernels.native import DecoderLayer, DecoderLayers, Library, Product
from inference_node.kernels.paged_attention import AttentionPlan
from inference_node.kernels.quant4 import NativeLinear
from inference_node.model.layers import LoraLinear

_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
_GROUPS = (
    (".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj"),
    (".self_attn.o_proj",),
    (".mlp.gate_proj", ".mlp.up_proj"),
    (".mlp.down_proj",),
)


class FusedLayers:
    """Every layer of one model; holds what the running step needs."""

    def __init__(self, native: DecoderLayers, attend: Any) -> None:
        """`attend(layer, q)` is paged attention over the running step's plan."""
        self._native = native
        self._attend = attend

    def begin(self, lora: LoraPlan | None, attention: AttentionPlan) -> None:
        self._native.begin(lora, attention)

    def forward(
        self,
        index: int,
        hidden_states: torch.Tensor,  # [1, rows, hidden]
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """What the layer's own forward computes."""
        x = hidden_states[0]
        cos, sin = position_embeddings
        q = self._native.before_attention(index, x, cos[0], sin[0])
        return self._native.after_attention(index, x, self._attend(index, q))[None]


def fuse(
    model: Any,
    modules: ModuleMap,
    library: Library,
    *,
    caches: tuple[list[torch.Tensor], list[torch.Tensor]],
    pools: tuple[GroupPool, ...],
    attend: Any,
) -> FusedLayers | None:
    """Replace the forward of every layer, or None when the model is of another shape.

    `caches` are keys and values of every layer; `attend(layer, q)` is paged attention.
    """
    found = [_describe(model.get_submodule(f"{modules.head}{i}")) for i in range(modules.layers)]
    layers = [layer for layer in found if layer is not None]
    tails = tuple(group.tails for group in modules.groups)
    if tails != _GROUPS or len(layers) < len(found):
        return None
    native = DecoderLayers(library, layers, *caches, pools)
    fused = FusedLayers(native, attend)
    for index in range(modules.layers):
        layer = model.get_submodule(f"{modules.head}{index}")
        layer.forward = partial(fused.forward, index)
    return fused


def _describe(layer: Any) -> DecoderLayer | None:
    """The tensors of a layer that `layer.h` computes; None for any other kind."""
    if type(layer).__name__ not in _LAYERS or not _is_silu(layer.mlp.act_fn):
        return None
    linears = [layer.get_submodule(tails[0][1:]) for tails in _GROUPS]
    products = [_product(linear) for linear in linears]
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if not all(products) or any(norm.weight.dtype != torch.bfloat16 for norm in norms):
        return None
    attention = layer.self_attn
    return DecoderLayer(
        products=tuple(products),  # type: ignore[arg-type]
        norms=(norms[0].weight.data, norms[1].weight.data),
        eps=norms[0].variance_epsilon,
        heads=linears[1].group.base.in_features // attention.head_dim,
        head_dim=attention.head_dim,
    )


def _product(linear: Any) -> Product | None:
    base = linear.group.base if isinstance(linear, LoraLinear) else None
    return base.product if isinstance(base, NativeLinear) else None


def _is_silu(activation: Any) -> bool:
    probe = torch.linspace(-4, 4, 9)
    return torch.equal(activation(probe), torch.nn.functional.silu(probe))

"""Decoder layers of Llama's shape, run by native calls instead of forty operators each.

All layers are one call where every row is attended with a context of its own, and two calls each
where a step holds long prompts or a window. Embeddings, rotary angles, the last norm and the head
stay transformers' own. What is replaced is the forward of each layer and the walk over them, where
every product is a 4-bit one that the native kernels can call, and the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from inference_node.kernels.lora import GroupPool, LoraPlan, ModuleMap
from inference_node.kernels.native import DecoderLayer, DecoderLayers, Library, Product
from inference_node.kernels.paged_attention import AttentionPlan
from inference_node.kernels.quant4 import NativeLinear
from inference_node.model.layers import LoraLinear
from inference_node.model.trace import AttentionRule

_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
_WALKS = {"LlamaModel", "MistralModel", "Qwen2Model"}
"""Models that embed, turn positions to angles, walk over their layers and normalise: no more."""
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

    def walk(
        self,
        model: Any,
        own: Callable[..., BaseModelOutputWithPast],
        *,
        input_ids: torch.Tensor,  # [1, rows]
        position_ids: torch.Tensor,  # [1, rows]
        **context: Any,
    ) -> BaseModelOutputWithPast:
        """What `own`, the forward of the model below the head, computes: in one call, if it can."""
        if not self._native.whole:
            return own(input_ids=input_ids, position_ids=position_ids, **context)
        x = model.embed_tokens(input_ids)
        cos, sin = model.rotary_emb(x, position_ids)
        y = self._native.forward(x[0], cos[0], sin[0])
        return BaseModelOutputWithPast(last_hidden_state=model.norm(y[None]))


def fuse(
    model: Any,
    modules: ModuleMap,
    library: Library,
    *,
    caches: tuple[list[torch.Tensor], list[torch.Tensor]],
    pools: tuple[GroupPool, ...],
    attend: Any,
    rules: tuple[AttentionRule, ...],
) -> FusedLayers | None:
    """Replace the forward of every layer, or None when the model is of another shape.

    `caches` are keys and values of every layer; `attend(layer, q)` is paged attention.
    """
    found = [
        _describe(model.get_submodule(f"{modules.head}{index}"), rule)
        for index, rule in enumerate(rules)
    ]
    layers = [layer for layer in found if layer is not None]
    tails = tuple(group.tails for group in modules.groups)
    if tails != _GROUPS or len(layers) < len(found):
        return None
    native = DecoderLayers(library, layers, *caches, pools)
    fused = FusedLayers(native, attend)
    for index in range(modules.layers):
        layer = model.get_submodule(f"{modules.head}{index}")
        layer.forward = partial(fused.forward, index)
    below = model.get_submodule(modules.head.removesuffix(".layers."))
    if type(below).__name__ in _WALKS:
        own = type(below).forward.__get__(below)
        below.forward = partial(fused.walk, below, own)
    return fused


def _describe(layer: Any, rule: AttentionRule) -> DecoderLayer | None:
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
        scale=rule.scale if rule.window is None and rule.softcap is None else None,
    )


def _product(linear: Any) -> Product | None:
    base = linear.group.base if isinstance(linear, LoraLinear) else None
    return base.product if isinstance(base, NativeLinear) else None


def _is_silu(activation: Any) -> bool:
    probe = torch.linspace(-4, 4, 9)
    return torch.equal(activation(probe), torch.nn.functional.silu(probe))

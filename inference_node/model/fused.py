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
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from inference_node.kernels.lora import GroupPool, LoraPlan, ModuleMap
from inference_node.kernels.native import DecoderLayer, DecoderLayers, Library, Product
from inference_node.kernels.paged_attention import AttentionPlan
from inference_node.kernels.quant4 import NativeLinear
from inference_node.model.llama import LlamaLayer, llama_layers
from inference_node.model.trace import AttentionRule

_WALKS = {"LlamaModel", "MistralModel", "Qwen2Model"}
"""Models that embed, turn positions to angles, walk over their layers and normalise: no more."""


class Angles:
    """Cosines and sines of all positions that came up, and as many again.

    For embeddings whose angles depend on the position alone: others are refused at start.
    """

    def __init__(self) -> None:
        self._cos = self._sin = torch.empty(0, 0)

    def of(
        self,
        positions: torch.Tensor,  # [rows] int64, each below `end`
        end: int,
        *,
        embedding: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        like: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [rows, head_dim], of the type of `like`
        """What `embedding(like, positions)` computes, without computing it again."""
        if len(self._cos) < end:
            places = torch.arange(2 * end, device=positions.device)
            cos, sin = embedding(like, places[None])
            self._cos, self._sin = cos[0].contiguous(), sin[0].contiguous()
        return self._cos[positions], self._sin[positions]


class FusedLayers:
    """Every layer of one model; holds what the running step needs."""

    def __init__(self, native: DecoderLayers, attend: Any) -> None:
        """`attend(layer, q)` is paged attention over the running step's plan."""
        self._native = native
        self._attend = attend
        self._angles = Angles()
        self._longest = 0

    def begin(self, lora: LoraPlan | None, attention: AttentionPlan) -> None:
        self._longest = attention.longest
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
        cos, sin = self._angles.of(
            position_ids[0], self._longest, embedding=model.rotary_emb, like=x
        )
        y = self._native.forward(x[0], cos, sin)
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
    found = llama_layers(model, modules)
    described = [_native(layer, rule) for layer, rule in zip(found or (), rules, strict=False)]
    layers = [layer for layer in described if layer is not None]
    if not layers or len(layers) < len(described):
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


def _native(layer: LlamaLayer, rule: AttentionRule) -> DecoderLayer | None:
    """The tensors of a layer that `layer.h` computes; None where it does not."""
    products = [_product(group.base) for group in layer.groups]
    if not all(products) or any(norm.dtype != torch.bfloat16 for norm in layer.norms):
        return None
    return DecoderLayer(
        products=tuple(products),  # type: ignore[arg-type]
        norms=layer.norms,
        eps=layer.eps,
        heads=layer.heads,
        head_dim=layer.head_dim,
        scale=rule.scale if rule.window is None and rule.softcap is None else None,
    )


def _product(base: nn.Module) -> Product | None:
    return base.product if isinstance(base, NativeLinear) else None

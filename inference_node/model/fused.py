"""Models of Llama's shape, run by native calls instead of forty operators a layer.

A whole step is one call, from tokens to logits, where every row is attended with a context of its
own and the model around its layers is of Llama's shape too. Where a step holds long prompts or a
window, each layer is two calls inside transformers' own forward pass. So it is done where every
product is a 4-bit one that the native kernels can call, and the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from inference_node.kernels.lora import GroupPool, ModuleMap
from inference_node.kernels.native import (
    DecoderLayer,
    DecoderLayers,
    Library,
    Product,
    Surroundings,
    WholeModel,
)
from inference_node.kernels.quant4 import NativeLinear
from inference_node.model.batch import Decoded, ForwardBatch
from inference_node.model.llama import LlamaLayer, llama_layers
from inference_node.model.trace import AttentionRule
from inference_node.model.vocabulary import NativeHead, PanelEmbedding

_MODELS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
"""Those that embed, walk over their layers, normalise and multiply with their head: no more."""


class Angles:
    """Cosines and sines of all positions that came up, and as many again.

    For embeddings whose angles depend on the position alone: others are refused at start.
    """

    def __init__(self) -> None:
        self._cos = self._sin = torch.empty(0, 0)

    def upto(
        self,
        end: int,
        *,
        embedding: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        like: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [places, head_dim], of the type of `like`
        """What `embedding(like, positions)` computes for at least all positions below `end`."""
        if len(self._cos) < end:
            places = torch.arange(2 * end, device=like.device)
            with torch.inference_mode():
                cos, sin = embedding(like, places[None])
            self._cos, self._sin = cos[0].contiguous(), sin[0].contiguous()
        return self._cos, self._sin


class FusedLayers:
    """Every layer of one model; `native` holds what the running step needs."""

    def __init__(self, native: DecoderLayers, attend: Any) -> None:
        """`attend(layer, q)` is paged attention over the running step's plan."""
        self.native = native
        self._attend = attend

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
        q = self.native.before_attention(index, x, cos[0], sin[0])
        return self.native.after_attention(index, x, self._attend(index, q))[None]


class FusedModel:
    """Whole steps of one model."""

    def __init__(
        self, native: WholeModel, embedding: Callable[..., Any], *, like: torch.Tensor
    ) -> None:
        """`embedding` turns positions to angles, of the type of `like`."""
        self.native = native
        self._embedding, self._like = embedding, like
        self._angles = Angles()

    def forward(self, batch: ForwardBatch) -> Decoded:
        """A step whose layers have begun and are `whole`."""
        cos, sin = self._angles.upto(
            batch.attention.longest, embedding=self._embedding, like=self._like
        )
        return Decoded(
            *self.native.forward(
                batch.token_ids, batch.positions, batch.logit_rows, cos=cos, sin=sin
            )
        )


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
    fused = FusedLayers(DecoderLayers(library, layers, *caches, pools), attend)
    for index in range(modules.layers):
        layer = model.get_submodule(f"{modules.head}{index}")
        layer.forward = partial(fused.forward, index)
    return fused


def fuse_whole(model: Any, layers: FusedLayers, library: Library) -> FusedModel | None:
    """All of a model whose layers are fused, or None when it is of another shape around them."""
    head = model.get_output_embeddings()
    if type(model).__name__ not in _MODELS or not isinstance(head, NativeHead):
        return None
    below, embedding = model.model, model.get_input_embeddings()
    tied = isinstance(embedding, PanelEmbedding)
    if not tied and embedding.weight.shape[0] != 16 * head.weight.shape[0]:
        return None
    if any(each.weight.dtype != torch.bfloat16 for each in (embedding, below.norm)):
        return None
    around = Surroundings(
        embedding=None if tied else embedding.weight.data,
        norm=below.norm.weight.data,
        eps=below.norm.variance_epsilon,
        head=head.weight,
    )
    native = WholeModel(library, layers.native, around)
    return FusedModel(native, below.rotary_emb, like=around.norm)


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

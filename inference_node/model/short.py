"""Decoder layers of Llama's shape in few launches: four products, attention, and five operators.

Run operator by operator, a layer of transformers has about thirty small ones between its products,
and on a card each costs more to launch than to compute. What is replaced is the forward of each
layer; embeddings, rotary angles, the last norm and the head stay transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch

from inference_node.kernels.lora import ModuleMap
from inference_node.kernels.paged_attention import AttentionPlan
from inference_node.kernels.pointwise import Pointwise
from inference_node.model.llama import LlamaLayer, llama_layers


class Cache(Protocol):
    """Keys and values of every layer, and the attention of the running step."""

    k: list[torch.Tensor]
    v: list[torch.Tensor]
    plan: AttentionPlan | None

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor: ...


class ShortLayers:
    """The layers of one model, which run as they did until `use` is called."""

    def __init__(
        self, layers: Sequence[LlamaLayer], own: Sequence[Any], kernels: Pointwise, cache: Cache
    ) -> None:
        """`own` are the modules that the layers are taken from."""
        self._layers = layers
        self._own = own
        self._kernels = kernels
        self._cache = cache

    def use(self) -> None:
        for index, layer in enumerate(self._own):
            layer.forward = partial(self.forward, index)

    def leave(self) -> None:
        """Back to the layers' own forward."""
        for layer in self._own:
            vars(layer).pop("forward", None)

    def forward(
        self,
        index: int,
        hidden_states: torch.Tensor,  # [1, rows, hidden]
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """What the layer's own forward computes; overwrites its input."""
        layer, kernels, cache = self._layers[index], self._kernels, self._cache
        assert cache.plan is not None
        x = hidden_states[0]
        cos, sin = position_embeddings
        qkv, o, gate_up, down = layer.groups
        normed = kernels.add_norm(x, None, layer.norms[0], layer.eps)
        q = kernels.rotate(
            qkv.all(normed[None])[0],
            cos[0],
            sin[0],
            cache.k[index],
            cache.v[index],
            cache.plan.slots,
        )
        attended = o.all(cache.attend(index, q).reshape(1, len(x), -1))[0]
        normed = kernels.add_norm(x, attended, layer.norms[1], layer.eps)
        x += down.all(kernels.silu_times(gate_up.all(normed[None])[0])[None])[0]
        return hidden_states


def short_layers(
    model: Any, modules: ModuleMap, kernels: Pointwise, cache: Cache
) -> ShortLayers | None:
    """None when the model is of another shape."""
    layers = llama_layers(model, modules)
    if layers is None:
        return None
    own = [model.get_submodule(f"{modules.head}{index}") for index in range(modules.layers)]
    return ShortLayers(layers, own, kernels, cache)

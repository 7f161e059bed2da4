"""Both ends of a model: the output embedding by a C kernel, and the input embedding beside it.

The weight is kept once, in the panels that `dense.h` multiplies, also where it is both ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from inference_node.kernels.native import Library, in_panels


class NativeHead(nn.Module):
    """The output embedding. A row's result is the same whatever rows are beside it."""

    def __init__(self, weight: torch.Tensor, library: Library) -> None:
        """weight [vocab, in]."""
        super().__init__()
        self.weight = nn.Buffer(library.keep(in_panels(weight)))  # [vocab / 16, in / 2, 16, 2]
        self._library = library

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., in] -> [..., vocab]
        width = 2 * self.weight.shape[1]
        y = self._library.dense_linear(x.reshape(-1, width).contiguous(), self.weight)
        return y.view(*x.shape[:-1], y.shape[1])


class PanelEmbedding(nn.Module):
    """The input embedding that is the output embedding too, read from its panels."""

    def __init__(self, head: NativeHead, own: nn.Module) -> None:
        """`own` is the model's own, whose weight the head's panels were made of."""
        super().__init__()
        self.weight = head.weight
        self.scale = getattr(own, "embed_scale", None)
        """What some models multiply their embeddings with."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # [...] -> [..., in]
        x = self.weight[ids // 16, :, ids % 16].flatten(-2)
        return x if self.scale is None else x * self.scale.to(x.dtype)


def replace_ends(model: Any, library: Library) -> None:
    """Let the C kernel multiply the output embedding, where it can; all else stays as it is."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not _fits(head, library):
        return
    made = NativeHead(head.weight.data, library)
    if embedding.weight.data_ptr() == head.weight.data_ptr():
        reading = PanelEmbedding(made, embedding)
        probe = torch.arange(min(3, head.out_features))
        if not torch.equal(reading(probe), embedding(probe)):
            return
        model.set_input_embeddings(reading)
    model.set_output_embeddings(made)


def _fits(head: nn.Module, library: Library) -> bool:
    return (
        library.multiplies_nf4
        and type(head) is nn.Linear
        and head.bias is None
        and head.weight.dtype == torch.bfloat16
        and head.weight.is_contiguous()
        and head.out_features % 16 == 0
        and head.in_features % 2 == 0
    )

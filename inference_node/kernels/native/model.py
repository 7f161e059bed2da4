"""The structures of `model.h`, filled from tensors: all of a model, for steps in one call."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from operator import is_

import torch

from inference_node.kernels.native import structures
from inference_node.kernels.native.layers import DecoderLayers, check
from inference_node.kernels.native.library import Library


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The tensors of a model around its layers, bfloat16."""

    embedding: torch.Tensor | None  # [vocabulary, hidden]; None: the head is the embedding too
    norm: torch.Tensor  # [hidden]: after the last layer
    eps: float
    head: torch.Tensor  # [vocabulary / 16, hidden / 2, 16, 2]: `in_panels`


class WholeModel:
    """A model over its layers' caches and pools; used by one thread."""

    def __init__(self, library: Library, layers: DecoderLayers, around: Surroundings) -> None:
        """Raises ValueError when sizes or types do not fit together."""
        vocabulary = 16 * around.head.shape[0]
        check(around.head, (vocabulary // 16, layers.hidden // 2, 16, 2))
        check(around.norm, (layers.hidden,))
        if around.embedding is not None:
            check(around.embedding, (vocabulary, layers.hidden))
        self._library, self._layers, self._around = library, layers, around
        self._model = structures.Model(
            layers=layers.structures,
            count=len(layers.structures),
            vocabulary=vocabulary,
            embedding=None if around.embedding is None else around.embedding.data_ptr(),
            head=around.head.data_ptr(),
            norm=around.norm.data_ptr(),
            eps=around.eps,
        )
        self._ends = structures.Ends()
        self._logits = around.norm.new_empty(0, vocabulary)
        self._best = torch.empty(0, dtype=torch.int64)
        self._inputs: tuple[object, ...] = (None,) * 6
        """Of the last step: the same again, written anew or not, are checked and described."""

    def forward(
        self,
        tokens: torch.Tensor,  # [rows] int64
        positions: torch.Tensor,  # [rows] int64
        wanted: torch.Tensor,  # [sampled] int64, each a row, none twice
        *,
        cos: torch.Tensor,  # [places, head_dim] bfloat16: of all positions up to the last
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [sampled, vocabulary] and `greedy.likeliest` of them, for a step that is `whole`.

        The next step may overwrite them.
        Raises ValueError on another shape or type, and on indices that are out of their range.
        """
        layers, step, ends = self._layers, self._layers.step, self._ends
        inputs = (tokens, positions, wanted, cos, sin, layers.attention)
        if not all(map(is_, inputs, self._inputs)):
            self._check(tokens, positions, wanted, cos, sin)
            self._inputs = inputs
            ends.tokens, ends.wanted = tokens.data_ptr(), wanted.data_ptr()
            ends.sampled = wanted.numel()
        step.cos, step.sin, step.places = cos.data_ptr(), sin.data_ptr(), cos.shape[0]
        step.position = positions.data_ptr()
        step.weights, step.weight_tokens = self._library.attention_scratch(
            layers.heads, places=step.table_width * step.block_tokens
        )
        if len(self._best) != ends.sampled:
            self._logits = cos.new_empty(ends.sampled, self._model.vocabulary)
            self._best = torch.empty(ends.sampled, dtype=torch.int64)
            ends.logits, ends.best = self._logits.data_ptr(), self._best.data_ptr()
        done = self._library.model_forward(
            ctypes.byref(self._model), ctypes.byref(step), ctypes.byref(ends)
        )
        if not done:
            raise ValueError("a token, a position or a wanted row is out of its range")
        return self._logits, self._best

    def _check(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        wanted: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> None:
        rows, sampled = self._layers.step.rows, wanted.numel()
        if not self._layers.whole or sampled > rows:
            raise ValueError("a step with rows that are attended elsewhere, or wanted twice")
        for index, most in ((tokens, rows), (positions, rows), (wanted, sampled)):
            if index.shape != (most,) or index.dtype != torch.int64 or not index.is_contiguous():
                raise ValueError(f"expected {most} int64 in a row, got {index.dtype} {index.shape}")
        for angles in (cos, sin):
            check(angles, (cos.shape[0], self._layers.head_dim))

"""What the small operators of a layer agree on."""

from __future__ import annotations

from typing import Protocol

import torch


class Pointwise(Protocol):
    """Semantics in the package's docstring."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """x [rows, hidden], changed in place by delta of the same shape; returns [rows, hidden]."""
        ...

    def rotate(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """qkv [rows, (heads + 2 * kv_heads) * dim], cos and sin [rows, dim], slots [rows] int64,
        caches [blocks, block_tokens, kv_heads, dim]; returns [rows, heads, dim].

        Raises ValueError where they do not fit.
        """
        ...

    def silu_times(self, gate_up: torch.Tensor) -> torch.Tensor:
        """gate_up [rows, 2 * inner]; returns [rows, inner]."""
        ...


def heads_of(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, k_cache: torch.Tensor) -> int:
    """Query heads of `rotate`'s operands. Raises ValueError where they do not fit."""
    _, _, kv_heads, dim = k_cache.shape
    heads, odd = divmod(qkv.shape[1], dim)
    if odd or heads <= 2 * kv_heads or dim % 2:
        raise ValueError(f"qkv is {tuple(qkv.shape)} for {kv_heads} key heads of {dim}")
    if cos.shape != (qkv.shape[0], dim) or sin.shape != cos.shape:
        raise ValueError(f"angles are {tuple(cos.shape)} for heads of {dim}")
    if not qkv.dtype == cos.dtype == sin.dtype == k_cache.dtype:
        raise ValueError(f"dtypes differ: {qkv.dtype}, {cos.dtype}, {k_cache.dtype}")
    return heads - 2 * kv_heads

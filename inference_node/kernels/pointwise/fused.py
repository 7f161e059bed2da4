"""The small operators of a layer on a GPU, one launch each. Imported where Triton is."""

from __future__ import annotations

import torch
from triton import next_power_of_2

from inference_node.kernels.pointwise import programs
from inference_node.kernels.pointwise.contract import heads_of

_BLOCK = 1024
"""Columns of a row that one program of `silu_times` takes."""


class FusedPointwise:
    """`Pointwise` in Triton."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        rows, width = x.shape
        if weight.shape != (width,) or (delta is not None and delta.shape != x.shape):
            raise ValueError(f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}")
        more = x if delta is None else delta
        _check(x, more, weight)
        out = x.new_empty(rows, width)
        programs.add_norm_rows[(rows,)](
            out,
            x,
            more,
            weight,
            eps,
            x.stride(0),
            more.stride(0),
            WIDTH=width,
            WIDTH_ROUNDED=next_power_of_2(width),
            ADDS=delta is not None,
            num_warps=8,
        )
        return out

    def rotate(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        heads, kv_heads, dim = heads_of(qkv, cos, sin, k_cache), *k_cache.shape[2:]
        _check(qkv, k_cache, v_cache)
        if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
            raise ValueError("the caches must be contiguous")
        q = qkv.new_empty(len(qkv), heads, dim)
        programs.rotate_heads[len(qkv), heads + kv_heads](
            q,
            k_cache,
            v_cache,
            qkv,
            cos.contiguous(),
            sin.contiguous(),
            slots,
            qkv.stride(0),
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            HALF_ROUNDED=next_power_of_2(dim // 2),
            num_warps=1,
        )
        return q

    def silu_times(self, gate_up: torch.Tensor) -> torch.Tensor:
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        _check(gate_up)
        out = gate_up.new_empty(rows, inner)
        block = min(_BLOCK, next_power_of_2(inner))
        programs.silu_times_rows[rows, -(-inner // block)](
            out, gate_up, gate_up.stride(0), INNER=inner, BLOCK=block, num_warps=4
        )
        return out


def _check(*tensors: torch.Tensor) -> None:
    first = tensors[0]
    if any(each.dtype != first.dtype or each.device != first.device for each in tensors):
        raise ValueError(f"dtypes or devices differ: {[each.dtype for each in tensors]}")
    if any(each.stride(-1) != 1 for each in tensors):
        raise ValueError("a row must lie in one piece")

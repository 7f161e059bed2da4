"""The small operators of a layer in torch, rounded as transformers' own code rounds."""

from __future__ import annotations

import torch

from inference_node.kernels.pointwise.contract import heads_of


class _Reference:
    """`Pointwise`."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        if delta is not None:
            x += delta
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
        return weight * (wide * scale).to(x.dtype)

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
        parts = qkv.view(len(qkv), -1, dim)
        turning, v = parts[:, : heads + kv_heads], parts[:, heads + kv_heads :]
        low, high = turning.chunk(2, dim=-1)
        turned = torch.cat([-high, low], dim=-1)
        turning = turning * cos[:, None] + turned * sin[:, None]
        k_cache.view(-1, kv_heads, dim)[slots] = turning[:, heads:]
        v_cache.view(-1, kv_heads, dim)[slots] = v
        return turning[:, :heads]

    def silu_times(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up


REFERENCE = _Reference()

"""Paged attention on a GPU: split-KV decode in Triton, prompts by torch's own flash attention.

Imported where Triton is: `backend.choose` does so on CUDA. Semantics are `reference`'s, except that
what a row may not see is not read, so blocks need not be finite.

Query heads that share a key head are one operand, so keys are read once. A context is cut at fixed
positions: how a row's sum is taken depends on its own length alone. Grids follow from the width of
the block table and never from contents. After Flash-Decoding (Dao et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton import knobs, next_power_of_2

from inference_node.kernels.paged_attention import programs
from inference_node.kernels.paged_attention.contract import AttentionPlan
from inference_node.kernels.paged_attention.prefill import Prefill
from inference_node.kernels.paged_attention.reference import check_fits

_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """`AttentionKernels` in Triton."""

    prefill: Prefill
    split: int = 256
    """Positions of a context that one program sums up: a multiple of `tokens`."""
    tokens: int = 64

    def write_kv(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: AttentionPlan,
    ) -> None:
        """`reference.write_kv`."""
        rows, kv_heads, dim = k.shape
        if k.shape != v.shape or k.shape[1:] != k_cache.shape[2:] or rows != len(plan.slots):
            raise ValueError(
                f"k {tuple(k.shape)}, v {tuple(v.shape)}, cache {tuple(k_cache.shape)}"
            )
        _check(k, v, k_cache, v_cache)
        programs.write_rows[(rows,)](
            k_cache,
            v_cache,
            k,
            v,
            plan.slots,
            *k.stride()[:2],
            *v.stride()[:2],
            WIDTH=kv_heads * dim,
            WIDTH_ROUNDED=next_power_of_2(kv_heads * dim),
            DIM=dim,
        )

    def attend(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """`reference.paged_attention`."""
        check_fits(q, k_cache)
        out = q.new_empty(q.shape)
        if plan.decode_rows:
            rows = slice(plan.decode_rows)
            self._decode(out[rows], q[rows], k_cache, v_cache, plan, scale, softcap)
        if plan.long:
            self.prefill(out, q, k_cache, v_cache, plan, scale, softcap)
        return out

    def _decode(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
        softcap: float | None,
    ) -> None:
        _check(q, k_cache, v_cache)
        rows, heads, dim = q.shape
        _, block_tokens, kv_heads, _ = k_cache.shape
        table = plan.decode_blocks
        if not table.is_contiguous():
            raise ValueError("the block table must be contiguous")
        splits = max(1, -(-table.shape[1] * block_tokens // self.split))
        sums, peaks, masses = out, out, out
        if splits > 1:
            sums = q.new_empty(splits, rows, heads, dim, dtype=torch.float32)
            peaks, masses = (
                q.new_empty(splits, rows, heads, dtype=torch.float32) for _ in range(2)
            )
        sizes = {
            "HEADS": heads,
            "DIM": dim,
            "DIM_ROUNDED": max(16, next_power_of_2(dim)),
            "SPLIT": self.split,
            "WINDOWED": plan.window is not None,
        }
        programs.attend_split[rows, kv_heads, splits](
            sums,
            peaks,
            masses,
            q,
            k_cache,
            v_cache,
            table,
            plan.decode_contexts,
            scale,
            softcap or 0.0,
            plan.window or 0,
            *q.stride()[:2],
            table.stride(0),
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            GROUP_ROUNDED=max(16, next_power_of_2(heads // kv_heads)),
            BLOCK_TOKENS=block_tokens,
            TOKENS=_tokens(self.tokens, q),
            CAPPED=softcap is not None,
            WHOLE=splits == 1,
            EXACT=q.dtype is torch.float32 or bool(knobs.runtime.interpret),
            num_warps=4,
            num_stages=2,
            **sizes,
        )
        if splits > 1:
            programs.join_splits[rows, heads](
                out, sums, peaks, masses, plan.decode_contexts, plan.window or 0, **sizes
            )


def _tokens(tokens: int, q: torch.Tensor) -> int:
    """Positions taken at once: what a program holds of them fits its registers."""
    if q.dtype is torch.float32:
        return 16
    return tokens if q.shape[-1] <= 128 else tokens // 2


def _check(*tensors: torch.Tensor) -> None:
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        raise ValueError(f"dtypes differ or are not supported: {sorted(map(str, dtypes))}")
    *rows, k_cache, v_cache = tensors
    if any(each.stride(-1) != 1 for each in rows):
        raise ValueError("a head must lie in one piece")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("the caches must be contiguous")

"""Paged attention in plain torch: the oracle, and the path taken on CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from inference_node.kernels.paged_attention.contract import AttentionPlan, LongChunk


def write_kv(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
) -> None:
    """Store new keys and values, [rows, kv_heads, head_dim], at the plan's slots, in place."""
    if k.shape != v.shape or k.shape[1:] != k_cache.shape[2:]:
        raise ValueError(f"k {tuple(k.shape)}, v {tuple(v.shape)}, cache {tuple(k_cache.shape)}")
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, plan.slots, k)
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, plan.slots, v)


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """One token a row: query heads of a key head are its "tokens", so keys are never repeated."""
    rows, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    gathered = (rows, -1, kv_heads, dim)
    k = k_cache[plan.decode_blocks].view(gathered).transpose(1, 2)  # [rows, kv_heads, context, d]
    v = v_cache[plan.decode_blocks].view(gathered).transpose(1, 2)
    packed = q.reshape(rows, kv_heads, heads // kv_heads, dim)
    mask = plan.mask(k.shape[2]) if plan.decode_mask is None else plan.decode_mask
    if softcap is None:
        out = scaled_dot_product_attention(packed, k, v, attn_mask=mask, scale=scale)
    else:
        out = _capped(packed, k, v, mask, scale, softcap)
    return out.reshape(rows, heads, dim)


DecodeAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, AttentionPlan, float], torch.Tensor
]


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None = None,
    decode: DecodeAttention = decode_attention,
) -> torch.Tensor:
    """q [rows, heads, head_dim] -> [rows, heads, head_dim]; the step's keys are already written.

    `decode` computes the single-token rows that see their whole context uncapped; the others are
    computed here.
    """
    check_fits(q, k_cache)
    plain = softcap is None and plan.window is None
    attend = decode if plain else partial(decode_attention, softcap=softcap)
    if not plan.long:
        return attend(q, k_cache, v_cache, plan, scale)
    out = torch.empty_like(q)
    if plan.decode_rows:
        out[: plan.decode_rows] = attend(q[: plan.decode_rows], k_cache, v_cache, plan, scale)
    for chunk in plan.long:
        rows = slice(chunk.first_row, chunk.first_row + chunk.length)
        out[rows] = prefill(q[rows], k_cache, v_cache, chunk, scale, softcap)
    return out


def check_fits(q: torch.Tensor, k_cache: torch.Tensor) -> None:
    """Raises ValueError when the heads of q are not those of the cache."""
    if q.ndim != 3 or q.shape[1] % k_cache.shape[2] or q.shape[2] != k_cache.shape[3]:
        raise ValueError(f"q {tuple(q.shape)} does not fit the cache {tuple(k_cache.shape)}")


def prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    chunk: LongChunk,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """The rows of one longer chunk, [length, heads, head_dim]."""
    kv_heads, dim = k_cache.shape[2:]
    k = k_cache[chunk.blocks].view(-1, kv_heads, dim)[: chunk.context].transpose(0, 1)
    v = v_cache[chunk.blocks].view(-1, kv_heads, dim)[: chunk.context].transpose(0, 1)
    if softcap is not None:
        grouped = q.transpose(0, 1).unflatten(0, (kv_heads, -1))  # [kv_heads, group, length, d]
        mask = chunk.within(chunk.context).mask if chunk.mask is None else chunk.mask
        capped = _capped(grouped, k[:, None], v[:, None], mask, scale, softcap)
        return capped.flatten(0, 1).transpose(0, 1)
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _capped(
    q: torch.Tensor,  # [..., queries, d]
    k: torch.Tensor,  # [..., context, d]
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores s become softcap * tanh(s / softcap), as in Gemma 2."""
    assert mask is not None
    scores = softcap * torch.tanh((q @ k.transpose(-1, -2)).float() * (scale / softcap))
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return weights.to(v.dtype) @ v

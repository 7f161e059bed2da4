"""Attention of each row over its own sequence's paged keys and values.

**Semantics.** Sequence i has query rows q_i (its newest tokens) and context length c_i including
them. With K_i, V_i the first c_i cached entries of its blocks, row j of q_i sees the first
c_i - len(q_i) + j + 1 of them::

    out = softmax(scale * q K^T + causal mask) V, query heads sharing key heads in equal groups

A layer may see a window of w keys alone, row j its own position and the w - 1 before it, and may
cap its scores s to softcap * tanh(s / softcap) before they are masked.

Caches are [blocks, block_tokens, kv_heads, head_dim]; block 0 is never handed out and holds zeros.
What is masked is multiplied by zero, not left out: every value of a sequence's own blocks must be
finite, past its context too, so a block is zeroed when it is handed out.
After PagedAttention (arXiv 2309.06180).
"""

from inference_node.kernels.paged_attention.contract import AttentionPlan, Chunk
from inference_node.kernels.paged_attention.reference import (
    DecodeAttention,
    decode_attention,
    paged_attention,
    write_kv,
)

__all__ = [
    "AttentionPlan",
    "Chunk",
    "DecodeAttention",
    "decode_attention",
    "paged_attention",
    "write_kv",
]

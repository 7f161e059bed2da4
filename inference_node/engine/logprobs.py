"""How likely the model held its tokens, from its logits as they are, before any edit."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from inference_node.request import Candidate, TokenScore

_ROWS = 64
"""Scored at a time, so that a long prompt needs no second copy of its logits."""


def score(logits: torch.Tensor, token_ids: Rows[int], top: Rows[int]) -> list[TokenScore]:
    """`log_softmax(logits)[token]`, the token's rank, and the `top` best tokens of each row.

    logits [rows, vocab] of any type, read as float32; `token_ids` and `top` one a row.
    """
    found: list[TokenScore] = []
    for start in range(0, len(token_ids), _ROWS):
        part = slice(start, start + _ROWS)
        found += _score(logits[part].float(), token_ids[part], top[part])
    return found


def _score(logits: torch.Tensor, token_ids: Rows[int], top: Rows[int]) -> list[TokenScore]:
    whole = logits.logsumexp(dim=-1, keepdim=True)
    own = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = ((logits > own).sum(dim=-1) + 1).tolist()
    best = logits.topk(min(max(top), logits.shape[1]), dim=-1)
    logprobs = (best.values - whole).tolist()
    indices = best.indices.tolist()
    return [
        TokenScore(
            token,
            logprob,
            rank,
            tuple(map(Candidate, indices[row][: top[row]], logprobs[row][: top[row]])),
        )
        for row, (token, logprob, rank) in enumerate(
            zip(token_ids, (own - whole)[:, 0].tolist(), ranks, strict=True)
        )
    ]

"""The greedy choice of a token."""

from __future__ import annotations

import torch


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, the first of equals; -1 where its logits are not finite.

    logits [rows, vocab]; returns [rows] int64. Finite logits whose sum is not count as not finite
    here; the C kernel looks at each.
    """
    finite = torch.isfinite(logits.sum(dim=-1))
    return torch.where(finite, logits.argmax(dim=-1), -1)

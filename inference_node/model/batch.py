"""One forward pass: its explicit context, beside which nothing about it is kept, and its result."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_node.kernels.lora import LoraPlan
from inference_node.kernels.paged_attention import AttentionPlan


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Token rows of a step: single-token rows first, longer chunks after them."""

    token_ids: torch.Tensor  # [rows] int64
    positions: torch.Tensor  # [rows] int64
    attention: AttentionPlan
    lora: LoraPlan | None
    logit_rows: torch.Tensor  # [sampled] int64, rows whose next token is wanted


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a step gives, until the next one runs: that may overwrite it."""

    logits: torch.Tensor  # [sampled, vocab]
    best: torch.Tensor  # [sampled] int64: the likeliest token; -1 where logits are not finite

"""The explicit context of one forward pass. Nothing about a step lives anywhere else."""

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

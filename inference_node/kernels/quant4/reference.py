"""The 4-bit linear with its weights written out: exact, and the oracle."""

from __future__ import annotations

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import nn


def dequantise(linear: Linear4bit, *, dtype: torch.dtype) -> torch.Tensor:
    """The exact values of a packed weight, [out, in].

    Raises ValueError when the operator has already repacked the weight for its own kernel.
    """
    state = getattr(linear.weight, "quant_state", None)
    if state is None or getattr(state, "packing_format_for_cpu", False):
        raise ValueError("the weight is not in bitsandbytes' own packing")
    weight: torch.Tensor = dequantize_4bit(linear.weight.data, state)
    return weight.to(dtype)


def dense_linear(linear: Linear4bit, *, dtype: torch.dtype) -> nn.Linear:
    """A plain linear holding the dequantised values."""
    out_features, in_features = linear.out_features, linear.in_features
    dense = nn.Linear(in_features, out_features, bias=linear.bias is not None, device="meta")
    dense.weight = nn.Parameter(dequantise(linear, dtype=dtype), requires_grad=False)
    if linear.bias is not None:
        dense.bias = nn.Parameter(linear.bias.data.to(dtype), requires_grad=False)
    return dense

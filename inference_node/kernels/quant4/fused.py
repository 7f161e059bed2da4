"""The 4-bit linear by bitsandbytes' own operator."""

from __future__ import annotations

import bitsandbytes
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit


def nf4_linear(linear: Linear4bit) -> Linear4bit:
    """The module itself: its forward dispatches to the operator of its device."""
    return linear


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the operator of `device` works in bfloat16 without converting to float32."""
    return device.type == "cuda" or bool(has_avx512bf16())


def describe(device: torch.device) -> str:
    """Which code runs an NF4 product on `device`, for the start banner."""
    version = f"bitsandbytes {bitsandbytes.__version__}"
    if device.type == "cuda":
        return f"{version} gemm_4bit (CUDA)"
    if multiplies_bfloat16(device):
        return f"{version} NF4 (AVX512-BF16)"
    return f"{version} dequantise + matmul (no AVX512-BF16 here)"

"""The 4-bit linear by bitsandbytes' own kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import bitsandbytes
import torch
from bitsandbytes.cextension import lib
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from inference_node.kernels.quant4.cuda import GemmLinear

_ROWS_AT_A_TIME = 32
"""Rows of a weight that the AVX512 kernel packs together."""
_FEW_ROWS = 64
"""Calls over up to this many rows take well under a millisecond and keep the interpreter lock."""
_INT, _PTR = ctypes.c_int64, ctypes.c_void_p
_SYMBOL = "gemv_4bit_inference_cpu_nf4_bf16"


class PackedLinear(nn.Module):
    """A linear in the packing of bitsandbytes' AVX512 kernel, which it calls directly.

    The way through `Linear4bit` costs several times what the product of a few rows does.
    """

    def __init__(self, linear: Linear4bit) -> None:
        """Repacks `linear`, which cannot be used afterwards."""
        super().__init__()
        linear(torch.zeros(1, linear.in_features, dtype=torch.bfloat16))
        state = linear.weight.quant_state  # type: ignore[attr-defined]
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.block = state.blocksize
        self.weight = nn.Buffer(linear.weight.data)
        self.absmax = nn.Buffer(state.absmax)
        self.bias = linear.bias
        self._few, self._many = _kernels()
        self._addresses = (self.weight.data_ptr(), self.absmax.data_ptr())

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., in] -> [..., out]
        rows = x.to(torch.bfloat16).reshape(-1, self.in_features).contiguous()
        y = rows.new_empty(rows.shape[0], self.out_features)
        call = self._few if rows.shape[0] <= _FEW_ROWS else self._many
        call(
            rows.shape[0],
            self.out_features,
            self.in_features,
            rows.data_ptr(),
            *self._addresses,
            y.data_ptr(),
            self.block,
            self.in_features,
            self.out_features,
        )
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def nf4_linear(linear: Linear4bit) -> nn.Module:
    """`linear` on bitsandbytes' kernel; it may be repacked and must not be used again.

    On a CPU without AVX512-BF16 that is the module itself, whose forward finds the operator.
    """
    device, state = linear.weight.device, getattr(linear.weight, "quant_state", None)
    if device.type == "cuda" and state is not None and not state.nested:
        return GemmLinear(linear)
    direct = (
        device.type == "cpu"
        and state is not None
        and multiplies_bfloat16(device)
        and linear.out_features % _ROWS_AT_A_TIME == 0
        and linear.in_features % state.blocksize == 0
        and hasattr(lib, _SYMBOL)
    )
    return PackedLinear(linear) if direct else linear


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


def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """The kernel twice: keeping the interpreter lock, and letting go of it."""
    path = lib._lib._name
    found = []
    for library in (ctypes.PyDLL(path), ctypes.CDLL(path)):
        call = getattr(library, _SYMBOL)
        call.argtypes, call.restype = [*[_INT] * 3, *[_PTR] * 4, *[_INT] * 3], None
        found.append(call)
    return found[0], found[1]

"""The 4-bit linear by the C kernel of `kernels/native/nf4.h`."""

from __future__ import annotations

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from inference_node.kernels.native import Library, Product
from inference_node.kernels.quant4.stacked import plain_state

OUTPUTS, BLOCK = 16, 64
"""Outputs of a panel, and inputs that share one scale: OUTPUTS and NF4_BLOCK of nf4.h."""


class NativeLinear(nn.Module):
    """A linear whose codes are decoded where they are multiplied.

    A row's result is the same, bit for bit, whatever rows are beside it.
    """

    def __init__(self, linear: Linear4bit, library: Library) -> None:
        """Call only if `fits(linear, library)`; `linear` itself stays as it is."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Buffer(library.keep(pack_codes(linear)))
        self.scale = nn.Buffer(library.keep(pack_scales(linear)))
        bias = linear.bias
        self.bias = None if bias is None else nn.Buffer(bias.data.to(torch.bfloat16))
        self._library = library
        self.product = Product(
            self.weight.data_ptr(),
            self.scale.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self.in_features,
            self.out_features,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., in] -> [..., out]
        rows = x.to(torch.bfloat16).reshape(-1, self.in_features).contiguous()
        y = rows.new_empty(rows.shape[0], self.out_features)
        self._library.nf4_linear(self.product, rows, y)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def fits(linear: Linear4bit, library: Library) -> bool:
    """Whether the kernel runs here and the weight is made of whole panels and blocks."""
    state = getattr(linear.weight, "quant_state", None)
    return (
        library.multiplies_nf4
        and state is not None
        and state.quant_type == "nf4"
        and state.blocksize == BLOCK
        and linear.out_features % OUTPUTS == 0
        and linear.in_features % BLOCK == 0
    )


def pack_codes(linear: Linear4bit) -> torch.Tensor:
    """Codes as nf4.h reads them: [out / 16, in / 64, 8, 16, 4] bytes.

    Of eight inputs of an output, a lane of 32 bits holds the four with an even index in its low
    half and the others in its high half, the first in the lowest bits.
    """
    plain_state(linear)
    codes = linear.weight.data.view(torch.uint8).view(-1)
    codes = torch.stack([codes >> 4, codes & 15], dim=1)  # bitsandbytes: the high nibble is first
    panels = linear.out_features // OUTPUTS
    lanes = codes.view(panels, OUTPUTS, linear.in_features // BLOCK, 8, 2, 2, 2)
    ordered = lanes.permute(0, 2, 3, 1, 6, 4, 5)  # [panel, block, eight, lane, half, byte, nibble]
    return (ordered[..., 0] | ordered[..., 1] << 4).flatten(-2).contiguous()


def pack_scales(linear: Linear4bit) -> torch.Tensor:
    """[out / 16, in / 64, 16] float32."""
    absmax: torch.Tensor = plain_state(linear).absmax.float()
    panels = linear.out_features // OUTPUTS
    return absmax.view(panels, OUTPUTS, -1).transpose(1, 2).contiguous()

"""Several 4-bit linears over one input, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit, Params4bit


def stacked(linears: Sequence[Linear4bit]) -> Linear4bit:
    """One linear whose outputs are those of `linears` side by side, code for code.

    All take the same input and are in bitsandbytes' own packing, which is row after row: rows of
    whole blocks can be put under each other. Raises ValueError where they cannot.
    """
    if len(linears) == 1:
        return linears[0]
    states = [plain_state(linear) for linear in linears]
    out_features = sum(linear.out_features for linear in linears)
    first = linears[0]
    made = Linear4bit(
        first.in_features,
        out_features,
        bias=first.bias is not None,
        compute_dtype=first.compute_dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    state = QuantState(
        absmax=torch.cat([state.absmax for state in states]),
        shape=torch.Size((out_features, first.in_features)),
        code=states[0].code,
        blocksize=states[0].blocksize,
        quant_type="nf4",
        dtype=states[0].dtype,
    )
    codes = torch.cat([linear.weight.data.view(torch.uint8).view(-1, 1) for linear in linears])
    made.weight = Params4bit(
        codes, requires_grad=False, quant_state=state, bnb_quantized=True, module=made
    )
    made.quant_state = state
    if first.bias is not None:
        made.bias = torch.nn.Parameter(
            torch.cat([linear.bias.data for linear in linears]), requires_grad=False
        )
    return made.eval()


def plain_state(linear: Linear4bit) -> QuantState:
    """How a weight in bitsandbytes' own packing is quantised. Raises ValueError for any other."""
    state: QuantState | None = getattr(linear.weight, "quant_state", None)
    if state is None or state.nested or getattr(state, "packing_format_for_cpu", False):
        raise ValueError("the weight is not in bitsandbytes' own packing")
    if linear.in_features * linear.out_features % state.blocksize:
        raise ValueError(f"{state.shape} is not made of whole blocks of {state.blocksize}")
    return state

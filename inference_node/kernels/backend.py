"""Which implementations of the operators a node runs with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from inference_node.kernels.lora import GroupPool, RowPages
from inference_node.kernels.native import NoCompiler, load
from inference_node.kernels.paged_attention import DecodeAttention, decode_attention


class RowKernels(Protocol):
    """LoRA for rows that read their pages in place; semantics in `lora/reference.py`."""

    def shrink_rows(
        self, x: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> torch.Tensor: ...

    def expand_add_rows(
        self, y: torch.Tensor, h: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """One choice of kernels."""

    name: str
    """For the start banner."""
    rows: RowKernels | None
    """None: every row goes through gathered blocks."""
    decode_attention: DecodeAttention


REFERENCE = Backend("torch kernels", None, decode_attention)


def choose(kernels: str, *, device: torch.device, folder: Path) -> Backend:
    """`reference`, `native`, or `auto`: native on a CPU with a C compiler.

    The compiled kernels are kept in `folder`. Raises NoCompiler when `native` was asked for.
    """
    if kernels == "reference" or device.type != "cpu":
        return REFERENCE
    try:
        library = load(folder)
    except NoCompiler as error:
        if kernels == "native":
            raise
        return Backend(f"{REFERENCE.name} ({error})", None, decode_attention)
    return Backend("native kernels", library, library.decode_attention)

"""Which implementations of the operators a node runs with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from inference_node.kernels.greedy import likeliest
from inference_node.kernels.lora import GroupPool, RowPages
from inference_node.kernels.native import Library, NoCompiler, load
from inference_node.kernels.paged_attention import (
    AttentionPlan,
    paged_attention,
    write_kv,
)
from inference_node.kernels.pointwise import Pointwise

_SHORT_PROMPT = 512
"""Up to here the C kernel's rows cost less than one call of torch for each sequence."""


class RowKernels(Protocol):
    """LoRA for rows that read their pages in place; semantics in `lora/reference.py`."""

    def shrink_rows(
        self, x: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> torch.Tensor: ...

    def expand_add_rows(
        self, y: torch.Tensor, h: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> None: ...


class WriteKv(Protocol):
    """`paged_attention.reference.write_kv`."""

    def __call__(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: AttentionPlan,
    ) -> None: ...


class Attend(Protocol):
    """`paged_attention.reference.paged_attention`."""

    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """One choice of kernels."""

    name: str
    """For the start banner."""
    rows: RowKernels | None = None
    """None: every row goes through gathered blocks."""
    attend: Attend = paged_attention
    write_kv: WriteKv = write_kv
    likeliest: Callable[[torch.Tensor], torch.Tensor] = likeliest
    """`greedy.likeliest`."""
    library: Library | None = None
    """The compiled C kernels, where they are."""
    by_row: int = 1
    """Prompts of up to so many tokens are attended row by row, with the single tokens."""
    reads_whole_blocks: bool = True
    """Whether what a block holds past a context must be finite."""
    plain_alone: bool = False
    """Whether windows and soft caps are left to torch, which reads whole blocks."""
    pointwise: Pointwise | None = None
    """For layers in few launches, where the model's are of a shape that can be so run."""
    captures: bool = False
    """Whether a step can be captured, with routing of any length."""

    @classmethod
    def native(cls, library: Library) -> Backend:
        """C, and torch's attention for what sees a window, is capped, or is a long prompt."""
        return cls(
            "native kernels",
            library,
            partial(paged_attention, decode=library.decode_attention),
            likeliest=library.likeliest,
            library=library,
            by_row=_SHORT_PROMPT,
            reads_whole_blocks=False,
            plain_alone=True,
        )


REFERENCE = Backend("torch kernels")


def choose(kernels: str, *, device: torch.device, folder: Path) -> Backend:
    """`reference`, `native`, `fused`, or `auto`: fused on CUDA, native on a CPU with a C compiler.

    The compiled kernels are kept in `folder`. Raises NoCompiler when `native` was asked for, and
    NoTriton when `fused` was.
    """
    if kernels == "reference":
        return REFERENCE
    if kernels == "fused" or (kernels == "auto" and device.type == "cuda"):
        return _fused(device, insist=kernels == "fused")
    if device.type != "cpu":
        return REFERENCE
    try:
        library = load(folder)
    except NoCompiler as error:
        if kernels == "native":
            raise
        return Backend(f"{REFERENCE.name} ({error})")
    return Backend.native(library)


class NoTriton(Exception):
    """Triton is not installed, or has no device to run on."""


def _fused(device: torch.device, *, insist: bool) -> Backend:
    try:
        from inference_node.kernels.lora.fused import FusedRows, interpreted
        from inference_node.kernels.paged_attention.fused import FusedAttention
        from inference_node.kernels.paged_attention.prefill import choose_prefill
        from inference_node.kernels.pointwise.fused import FusedPointwise
    except ImportError as error:
        if insist:
            raise NoTriton(f"{error}: pip install triton") from error
        return Backend(f"{REFERENCE.name} ({error})")
    if device.type == "cpu" and not interpreted():
        raise NoTriton("the fused kernels run on CUDA")
    attention = FusedAttention(choose_prefill(device))
    return Backend(
        "fused kernels",
        FusedRows(),
        attention.attend,
        attention.write_kv,
        reads_whole_blocks=False,
        pointwise=FusedPointwise(),
        captures=device.type == "cuda",
    )

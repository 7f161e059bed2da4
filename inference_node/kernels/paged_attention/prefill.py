"""Attention of the longer chunks of a step on a GPU.

`torch.nn.attention.varlen` takes all of them in one launch, keys shared by query heads, where the
torch at hand has it and computes what is asked; else each goes through `reference.prefill`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from inference_node.kernels.paged_attention.contract import AttentionPlan, Chunk
from inference_node.kernels.paged_attention.reference import prefill

log = logging.getLogger(__name__)


class Prefill(Protocol):
    """Write into `out` the rows of the plan's longer chunks; arguments as in `paged_attention`."""

    def __call__(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
        softcap: float | None,
    ) -> None: ...


def one_by_one(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None,
) -> None:
    """`Prefill` by the reference."""
    for chunk in plan.long:
        rows = slice(chunk.first_row, chunk.first_row + chunk.length)
        out[rows] = prefill(q[rows], k_cache, v_cache, chunk, scale, softcap)


@dataclass(frozen=True, slots=True)
class Together:
    """`Prefill` in one launch; capped scores are not among what `varlen` computes."""

    varlen: Any
    """`torch.nn.attention.varlen.varlen_attn`."""

    def __call__(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
        softcap: float | None,
    ) -> None:
        if softcap is not None or q.dtype is torch.float32:
            one_by_one(out, q, k_cache, v_cache, plan, scale, softcap)
            return
        first = plan.long[0].first_row
        shape = (-1, *k_cache.shape[2:])
        k, v = (
            torch.cat([cache[c.blocks].view(shape)[: c.context] for c in plan.long])
            for cache in (k_cache, v_cache)
        )
        out[first:] = self.varlen(
            q[first:].contiguous(),
            k,
            v,
            _ends([chunk.length for chunk in plan.long], q.device),
            _ends([chunk.context for chunk in plan.long], q.device),
            max(chunk.length for chunk in plan.long),
            max(chunk.context for chunk in plan.long),
            scale=scale,
            window_size=(-1 if plan.window is None else plan.window - 1, 0),
            enable_gqa=True,
        )


def choose_prefill(device: torch.device) -> Prefill:
    """`Together` where it gives what `one_by_one` gives; why not is logged."""
    try:
        from torch.nn.attention.varlen import varlen_attn

        together = Together(varlen_attn)
        for window in (None, 3):
            _compare(together, window, device)
    except Exception as error:
        log.info("prompts go through scaled_dot_product_attention one by one: %s", error)
        return one_by_one
    return together


def _compare(candidate: Prefill, window: int | None, device: torch.device) -> None:
    """Two chunks, one with a past; raises ArithmeticError when the results differ."""
    chunks = [Chunk((1, 2), 0, 5), Chunk((3, 4), 4, 7)]
    plan = AttentionPlan.build(chunks, block_tokens=8, device=device)
    if window is not None:
        plan = plan.within(window)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(*shape, generator=generator).to(device, torch.bfloat16)
        for shape in ((12, 4, 64), (5, 8, 2, 64), (5, 8, 2, 64))
    )
    found, expected = torch.zeros_like(q), torch.zeros_like(q)
    candidate(found, q, k, v, plan, 0.125, None)
    one_by_one(expected, q, k, v, plan, 0.125, None)
    error = (found.float() - expected.float()).norm() / expected.float().norm()
    if not float(error) < 0.02:
        raise ArithmeticError(f"varlen_attn differs by {float(error):.3f}")


def _ends(lengths: list[int], device: torch.device) -> torch.Tensor:
    ends = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    return ends.to(device, torch.int32)

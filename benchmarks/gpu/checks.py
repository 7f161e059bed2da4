"""Every kernel beside its reference, before anything is timed. Fresh random operands each time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.gpu.node import DTYPE, Node, adapters, pools_of
from benchmarks.gpu.sizes import Size
from inference_node.kernels.backend import Backend
from inference_node.kernels.lora import (
    GroupPool,
    LoraPlan,
    SlotPages,
    expand_add_rows,
    shrink_rows,
)
from inference_node.kernels.paged_attention import AttentionPlan, Chunk, paged_attention, write_kv
from inference_node.kernels.pointwise import REFERENCE as pointwise
from inference_node.kernels.quant4 import GemmLinear, dense_linear, stacked
from inference_node.model.trace import trace

TOLERANCE = 1.5e-2
"""Of the norm: bfloat16 operands, sums in another order."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    error: float

    @property
    def holds(self) -> bool:
        return self.error < TOLERANCE

    def __str__(self) -> str:
        return f"{self.name}: {self.error:.2e} {'' if self.holds else 'WRONG'}"


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative; not a number, which is below nothing, if either is not finite."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def check_lora(size: Size, backend: Backend, device: torch.device) -> Iterator[Check]:
    """One row of each of many adapters of every rank, one adapter for all, and prompts."""
    assert backend.rows is not None
    ranks = [1, 8, 16, 9, 32, 64, 24, 5]
    pages = sum(-(-rank // 8) for rank in ranks)
    modules = trace(size.config).modules
    slots: list[SlotPages | None] = [None, *adapters(ranks, (True,))]
    steps = {
        "few rows": [(slot, 1) for slot in slots],
        "many rows": [(slot, 1) for slot in slots * 3],
        "one adapter": [(slots[3], 1)] * 20,
        "prompts": [(slot, 40) for slot in slots[:4]],
    }
    for group in modules.groups:
        shape = group.shape
        pool = GroupPool(
            shape,
            torch.randn(pages + 1, 2, *shape.a_page, device=device).to(DTYPE),
            torch.randn(pages + 1, 2, *shape.b_page, device=device).to(DTYPE),
        )
        pool.a[0], pool.b[0], pool.a[:, 0], pool.b[:, 0] = 0, 0, torch.nan, torch.nan
        for name, step in steps.items():
            first, segments = 0, []
            for slot, count in step:
                segments.append((first, count, slot))
                first += count
            plan = LoraPlan.build(segments, groups=1, device=device, dtype=DTYPE, in_place=True)
            assert plan is not None
            assert plan.groups[0] is not None
            rows = plan.groups[0].single
            assert rows is not None
            x = torch.randn(first, shape.in_features, device=device).to(DTYPE)
            expected = torch.randn(first, shape.out_total, device=device).to(DTYPE)
            found = expected.clone()
            expand_add_rows(expected, shrink_rows(x, pool, 1, rows), pool, 1, rows)
            h = backend.rows.shrink_rows(x, pool, 1, rows)
            backend.rows.expand_add_rows(found, h, pool, 1, rows)
            yield Check(f"LoRA {group.name}, {name}", distance(found, expected))


def check_attention(size: Size, backend: Backend, device: torch.device) -> Iterator[Check]:
    config = size.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    contexts = [1, 16, 17, size.context, 3 * size.context]
    per_row = -(-max(contexts) // 16)
    blocks = random.Random(0).sample(range(1, per_row * 8), per_row * 7)
    k, v = (torch.randn(per_row * 8, 16, kv_heads, dim, device=device).to(DTYPE) for _ in "kv")
    for name, length, window in (("decode", 1, None), ("window", 1, 9), ("prompts", 9, None)):
        chunks = [
            Chunk(tuple(blocks[row * per_row : (row + 1) * per_row]), context - length, length)
            for row, context in enumerate(contexts)
            if context >= length
        ]
        plan = AttentionPlan.build(chunks, block_tokens=16, device=device)
        plan = plan if window is None else plan.within(window)
        rows = len(plan.slots)
        new = [torch.randn(rows, kv_heads, dim, device=device).to(DTYPE) for _ in "kv"]
        caches = [(k.clone(), v.clone()) for _ in range(2)]
        backend.write_kv(*caches[0], new[0], new[1], plan)
        write_kv(*caches[1], new[0], new[1], plan)
        for kind, found, expected in zip("kv", *caches, strict=True):
            yield Check(f"attention {name}, write {kind}", distance(found, expected))
        q = torch.randn(rows, heads, dim, device=device).to(DTYPE)
        found = backend.attend(q, *caches[0], plan, scale=dim**-0.5)
        expected = paged_attention(q, *caches[1], plan, scale=dim**-0.5)
        yield Check(f"attention {name}", distance(found, expected))


def check_pointwise(size: Size, backend: Backend, device: torch.device) -> Iterator[Check]:
    """The small operators of a layer, each beside the reference."""
    config, kernels = size.config, backend.pointwise
    assert kernels is not None
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    for rows in (1, 9):

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device).to(DTYPE)

        x, delta = random(rows, config.hidden_size), random(rows, config.hidden_size)
        weight = random(config.hidden_size)
        sums = x.clone(), x.clone()
        found = kernels.add_norm(sums[0], delta, weight, 1e-5)
        expected = pointwise.add_norm(sums[1], delta, weight, 1e-5)
        yield Check(f"norm, {rows} rows", distance(found, expected))
        yield Check(f"sum, {rows} rows", distance(*sums))
        qkv = random(rows, (heads + 2 * kv_heads) * dim)
        cos, sin = random(rows, dim), random(rows, dim)
        slots = torch.randperm(64, device=device)[:rows]
        shape = (4, 16, kv_heads, dim)
        caches = [[torch.zeros(shape, dtype=DTYPE, device=device) for _ in "kv"] for _ in range(2)]
        found = kernels.rotate(qkv, cos, sin, *caches[0], slots)
        expected = pointwise.rotate(qkv, cos, sin, *caches[1], slots)
        yield Check(f"turned queries, {rows} rows", distance(found, expected))
        for kind, mine, other in zip(("keys", "values"), *caches, strict=True):
            yield Check(f"turned {kind}, {rows} rows", distance(mine, other))
        gate_up = random(rows, 2 * config.intermediate_size)
        found, expected = kernels.silu_times(gate_up), pointwise.silu_times(gate_up)
        yield Check(f"gate, {rows} rows", distance(found, expected))


def check_linears(node: Node) -> Iterator[Check]:
    """The products of the first layer, packed, beside the weights written out."""
    for group, (_, originals) in zip(node.modules.groups, node.products(), strict=False):
        linear = stacked(originals)
        dense = dense_linear(linear, dtype=DTYPE)
        for rows in (1, 8, 70):
            x = torch.randn(rows, linear.in_features, device=node.device).to(DTYPE)
            found = GemmLinear(linear)(x)
            yield Check(f"4-bit {group.name}, {rows} rows", distance(found, dense(x)))


def check_steps(node: Node, rows: int) -> Iterator[Check]:
    """A captured step beside the same step uncaptured, before and after pages change hands."""
    pages = [8] * len(node.modules.groups)
    pools = pools_of(node.modules, pages, node.device)
    node.bind(pools)
    node.capture(rows)
    every = [True] * len(pages)
    slots = adapters([8, 16], every)
    batch = [slots[row % 2] if row % 3 else None for row in range(rows)]
    for name in ("captured step", "captured step after other adapters took the pages"):
        decoded = node.graphs.run(node.step(batch))
        assert decoded is not None, "the step was not captured"
        found = decoded.logits.clone()
        captured = node.graphs.held(rows, lora=any(batch)).step
        yield Check(name, distance(found, node.decoder.forward(captured.batch)[:rows]))
        for pool in pools:
            pool.a[1:].normal_(0, pool.shape.in_features**-0.5)
            pool.b[1:].normal_(0, 0.02)
    node.forget()

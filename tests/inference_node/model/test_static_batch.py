"""A decode step at fixed addresses is the step it was filled with, whatever it held before."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from inference_node.kernels.lora import (
    GroupPool,
    GroupShape,
    LoraPlan,
    SlotPages,
    expand_add_rows,
    shrink_rows,
)
from inference_node.kernels.paged_attention import AttentionPlan, Chunk, paged_attention, write_kv
from inference_node.model.graphs import bucket_of, buckets_for
from inference_node.model.static_batch import DecodeRow, StaticBatch, StaticSizes

CPU = torch.device("cpu")
SHAPES = (GroupShape(24, (16, 8)), GroupShape(40, (24,)))
PAGES, BLOCKS, BLOCK = 40, 30, 4
SIZES = StaticSizes(groups=2, widest=8, blocks=6, block_tokens=BLOCK, spare_block=BLOCKS + 1)


def adapters(seed: int = 0) -> list[SlotPages | None]:
    """Ranks 1 to 64 in one group, little or nothing in the other, and the base."""
    free = random.Random(seed).sample(range(1, PAGES), PAGES - 1)
    slots: list[SlotPages | None] = [None]
    for stamp, counts in enumerate(((1, 0), (8, 1), (0, 2), (3, 3))):
        pages = []
        for count in counts:
            own, free = tuple(free[:count]), free[count:]
            pages.append(own)
        slots.append(SlotPages(tuple(pages), 0.5 + stamp, stamp))
    return slots


def step_of(rows: int, seed: int) -> list[DecodeRow]:
    rng = random.Random(seed)
    free = rng.sample(range(1, BLOCKS + 1), BLOCKS)
    step = []
    for slot in sorted(rng.choices(adapters(), k=rows), key=lambda s: -1 if s is None else s.stamp):
        position = rng.randrange(3 * BLOCK)
        table = [free.pop() for _ in range(position // BLOCK + 1)]
        step.append(DecodeRow(rng.randrange(100), position, table, slot))
    return step


def eager(step: Sequence[DecodeRow]) -> tuple[AttentionPlan, LoraPlan | None]:
    chunks = [Chunk(tuple(row.block_table), row.position, 1) for row in step]
    return AttentionPlan.build(chunks, block_tokens=BLOCK, device=CPU), LoraPlan.build(
        [(index, 1, row.slot) for index, row in enumerate(step)],
        groups=2,
        device=CPU,
        dtype=torch.float32,
        in_place=True,
    )


@pytest.mark.parametrize("rows", [0, 1, 3, 7, 8])
def test_a_step_that_was_filled_over_another_gives_what_a_fresh_one_gives(rows: int) -> None:
    static = StaticBatch(8, SIZES, lora=True, device=CPU)
    for seed, count in ((1, 8), (2, 5), (3, rows)):
        step = step_of(count, seed)
        static.send(static.fill(step))
    batch = static.batch
    assert batch.token_ids[:rows].tolist() == [row.token for row in step]
    assert batch.positions[:rows].tolist() == [row.position for row in step]
    attention, lora = eager(step)
    torch.manual_seed(0)
    k, v = (torch.randn(BLOCKS + 2, BLOCK, 2, 16) for _ in "kv")
    q, new = torch.randn(8, 4, 16), torch.randn(8, 2, 16)
    expected = k.clone(), v.clone()
    for cache, plan, count in ((expected, attention, rows), ((k, v), batch.attention, 8)):
        write_kv(*cache, new[:count], new[:count], plan)
    for found, wanted in zip((k, v), expected, strict=True):
        assert torch.equal(found[:-1], wanted[:-1]), "padding writes to the spare block alone"
    found = paged_attention(q, k, v, batch.attention, scale=0.25)
    assert found.isfinite().all()
    if rows:
        wanted = paged_attention(q[:rows], k, v, attention, scale=0.25)
        torch.testing.assert_close(found[:rows], wanted)
    assert batch.lora is not None
    for group, shape in enumerate(SHAPES):
        pool = GroupPool(
            shape, torch.randn(PAGES, 1, *shape.a_page), torch.randn(PAGES, 1, *shape.b_page)
        )
        pool.a[0] = pool.b[0] = 0
        x, y = torch.randn(8, shape.in_features), torch.randn(8, shape.out_total)
        wanted = y.clone()
        plan = lora.groups[group] if lora is not None else None
        if plan is not None:
            assert plan.single is not None
            h = shrink_rows(x[:rows], pool, 0, plan.single)
            expand_add_rows(wanted[:rows], h, pool, 0, plan.single)
        own = batch.lora.groups[group]
        assert own is not None
        assert own.single is not None
        expand_add_rows(y, shrink_rows(x, pool, 0, own.single), pool, 0, own.single)
        torch.testing.assert_close(y, wanted)


def test_addresses_stay_where_they_are_and_every_one_suits_a_wide_load() -> None:
    static = StaticBatch(5, SIZES, lora=True, device=CPU)

    def tensors() -> list[torch.Tensor]:
        batch = static.batch
        assert batch.lora is not None
        found = [batch.token_ids, batch.positions, batch.attention.slots]
        found += [batch.attention.decode_blocks, batch.attention.decode_contexts]
        for group in batch.lora.groups:
            assert group is not None
            assert group.single is not None
            single = group.single
            found += [single.first, single.row, single.page, single.scale, single.tile]
        return found

    before = [tensor.data_ptr() for tensor in tensors()]
    static.send(static.fill(step_of(5, 1)))
    assert [tensor.data_ptr() for tensor in tensors()] == before
    start = static.on_device.data_ptr()
    assert all((address - start) % 16 == 0 for address in before)


def test_control_a_stale_page_of_the_step_before_is_seen() -> None:
    static = StaticBatch(4, SIZES, lora=True, device=CPU)
    full, fewer = step_of(4, 1), step_of(2, 2)
    static.fill(full)
    static.fill(full)
    held = {name: array.copy() for name, array in static._views[0].items()}
    static.fill(fewer)
    fresh = StaticBatch(4, SIZES, lora=True, device=CPU)
    fresh.fill(fewer)
    for name, array in static._views[0].items():
        assert (array == fresh._views[0][name]).all()
    assert any((held[name] != array).any() for name, array in static._views[0].items())


def test_rows_of_one_adapter_side_by_side_are_one_tile() -> None:
    slot = adapters()[2]
    step = [DecodeRow(1, 0, [index + 1], slot) for index in range(3)]
    static = StaticBatch(4, SIZES, lora=True, device=CPU)
    static.fill([*step, DecodeRow(1, 0, [9], None)])
    assert static._views[0]["tile0"].tolist() == [0, 3, 3, 3, 3]
    assert static._views[0]["first0"].tolist() == [0, 8, 16, 24, 24]


@pytest.mark.parametrize("most", [1, 2, 3, 16, 17, 64, 100, 256])
def test_every_number_of_rows_has_a_bucket_that_is_not_twice_as_large(most: int) -> None:
    buckets = buckets_for(most)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == most
    for rows in range(1, most + 1):
        bucket = bucket_of(rows, buckets)
        assert bucket is not None
        assert rows <= bucket < 2 * rows or bucket == rows
    assert bucket_of(most + 1, buckets) is None

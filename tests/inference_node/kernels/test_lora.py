"""The adapter product of a batch equals what a loop over its rows computes, one adapter each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from inference_node.kernels.lora import (
    PAGE_RANKS,
    GroupShape,
    LoraPlan,
    SlotPages,
    contract,
    gather_a,
    gather_b,
    lora_delta,
    lora_expand_add,
    lora_shrink,
)
from inference_node.kernels.lora.contract import GroupPlan

SHAPES = (GroupShape(24, (16, 8, 8)), GroupShape(40, (24,)))
"""Two groups: siblings of unequal widths, and a linear on its own."""
PAGES = 64
ROWS = 16
"""Rows that share a block with others, and a prompt long enough to fill one."""
RANKS = (1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 48, 63, 64)
CPU = torch.device("cpu")


@dataclass
class Adapter:
    """Dense factors per group, None where the adapter targets nothing, and its pages."""

    factors: tuple[
        tuple[torch.Tensor, torch.Tensor] | None, ...
    ]  # A [slices, rank, in], B [rank, sum(out)]
    slot: SlotPages


class Pool:
    """Pages full of NaN except page 0 and what adapters were written to."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)
        self.a = [torch.full((PAGES, *shape.a_page), torch.nan) for shape in SHAPES]
        self.b = [torch.full((PAGES, *shape.b_page), torch.nan) for shape in SHAPES]
        for tensor in (*self.a, *self.b):
            tensor[0] = 0
        self.free = [self.random.sample(range(1, PAGES), PAGES - 1) for _ in SHAPES]

    def add(self, rank: int, *, groups: Sequence[int] = (0, 1), scale: float = 1.5) -> Adapter:
        """A random adapter on pages picked at random; missing ranks of its last page are zeros."""
        factors: list[tuple[torch.Tensor, torch.Tensor] | None] = []
        pages: list[tuple[int, ...]] = []
        for group, shape in enumerate(SHAPES):
            if group not in groups:
                factors.append(None)
                pages.append(())
                continue
            a = self.normal(shape.slices, rank, shape.in_features)
            b = self.normal(rank, shape.out_total)
            taken = tuple(self.free[group].pop() for _ in range(-(-rank // PAGE_RANKS)))
            for index, page in enumerate(taken):
                ranks = slice(index * PAGE_RANKS, min(rank, (index + 1) * PAGE_RANKS))
                count = ranks.stop - ranks.start
                self.a[group][page] = 0
                self.b[group][page] = 0
                self.a[group][page, :, :count] = a[:, ranks]
                self.b[group][page, :count] = b[ranks]
            factors.append((a, b))
            pages.append(taken)
        return Adapter(tuple(factors), SlotPages(tuple(pages), scale, 0))

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator) / 4

    def run(self, segments: Sequence[tuple[int, Adapter | None]], group: int) -> torch.Tensor:
        """Compare a batch with the loop; returns what the operator gave."""
        spans, first = [], 0
        for count, adapter in segments:
            spans.append((first, count, None if adapter is None else adapter.slot))
            first += count
        x = self.normal(first, SHAPES[group].in_features)
        plan = LoraPlan.build(spans, groups=len(SHAPES), device=CPU, dtype=torch.float32)
        expected = row_by_row(x, [a for count, a in segments for _ in range(count)], group)
        step = plan.groups[group] if plan is not None else None
        if step is None:
            found = torch.zeros_like(expected)
        else:
            found = lora_delta(x, self.a[group], self.b[group], SHAPES[group], step)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        return found


def plan_of(
    *segments: tuple[int, SlotPages | None], dtype: torch.dtype = torch.float32
) -> GroupPlan:
    """The routing of the first group."""
    spans, first = [], 0
    for count, slot in segments:
        spans.append((first, count, slot))
        first += count
    plan = LoraPlan.build(spans, groups=len(SHAPES), device=CPU, dtype=dtype)
    assert plan is not None
    assert plan.groups[0] is not None
    return plan.groups[0]


def row_by_row(x: torch.Tensor, adapters: Sequence[Adapter | None], group: int) -> torch.Tensor:
    """The definition of LoRA, one row and one slice at a time."""
    shape = SHAPES[group]
    y = torch.zeros(x.shape[0], shape.out_total)
    for row, adapter in enumerate(adapters):
        factors = None if adapter is None else adapter.factors[group]
        if adapter is None or factors is None:
            continue
        a, b = factors
        first = 0
        for part, width in enumerate(shape.out_features):
            h = x[row] @ a[part].T
            y[row, first : first + width] = adapter.slot.scale * (h @ b[:, first : first + width])
            first += width
    return y


@pytest.mark.parametrize("group", range(len(SHAPES)))
@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_gives_its_own_product_for_single_rows_and_long_segments(
    rank: int, group: int
) -> None:
    pool = Pool(rank)
    adapter = pool.add(rank)
    pool.run([(1, adapter)] * 3, group)
    pool.run([(1, adapter), (ROWS + 3, adapter), (1, None)], group)


@pytest.mark.parametrize("length", [1, 2, ROWS - 1, ROWS, 33])
def test_a_segment_of_any_length_equals_the_loop(length: int) -> None:
    pool = Pool(length)
    pool.run([(1, pool.add(3)), (length, pool.add(12)), (length, None)], 0)


@pytest.mark.parametrize("group", range(len(SHAPES)))
def test_rows_with_one_adapter_all_distinct_ones_or_none_equal_the_loop(group: int) -> None:
    pool = Pool()
    adapters = [pool.add(rank, scale=rank / 3) for rank in (1, 5, 8, 12, 16, 33)]
    pool.run([(1, adapters[3])] * 6, group)
    pool.run([(1, adapter) for adapter in adapters], group)
    pool.run([(1, None), *((1, adapter) for adapter in adapters), (1, None)], group)


@pytest.mark.parametrize("seed", range(8))
def test_a_skewed_mix_of_decode_rows_and_prompts_equals_the_loop(seed: int) -> None:
    pool = Pool(seed)
    adapters: list[Adapter | None] = [None]
    adapters += [pool.add(pool.random.choice((1, 2, 5, 8, 12, 16, 20))) for _ in range(12)]
    weights = [1 / place for place in range(1, len(adapters) + 1)]
    rows = pool.random.choices(adapters, weights, k=pool.random.randrange(1, 24))
    prompts = pool.random.choices(adapters, weights, k=pool.random.randrange(4))
    segments = [(1, adapter) for adapter in rows]
    segments += [(pool.random.randrange(2, 40), adapter) for adapter in prompts]
    for group in range(len(SHAPES)):
        pool.run(segments, group)


@pytest.mark.parametrize("work", [1, 30, 10**9])
def test_however_the_rows_are_cut_into_blocks_the_product_is_the_loops(
    work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "BLOCK_WORK", work)
    pool = Pool()
    adapters = [pool.add(rank) for rank in (1, 5, 12, 33)]
    mix: list[Adapter | None] = [None, *adapters, None]
    segments = [(1, adapter) for adapter in mix * 3]
    segments += [
        (length, adapter) for length, adapter in zip((2, 9, 30, 5, 3, 8), mix, strict=True)
    ]
    for group in range(len(SHAPES)):
        pool.run(segments, group)


def test_slices_are_added_in_place_to_what_the_base_gave_and_only_there() -> None:
    pool = Pool()
    slot = pool.add(12).slot
    plan = plan_of((1, None), (3, slot), (1, None))
    x = pool.normal(plan.rows, SHAPES[0].in_features)
    whole = lora_delta(x, pool.a[0], pool.b[0], SHAPES[0], plan)
    shrunk = lora_shrink(x, gather_a(pool.a[0], SHAPES[0], plan), SHAPES[0], plan)
    for part, added in enumerate(whole.split(SHAPES[0].out_features, dim=1)):
        base = pool.normal(plan.rows, SHAPES[0].out_features[part])
        y = base.clone()
        ups = gather_b(pool.b[0], SHAPES[0], plan, part=part)
        lora_expand_add(y, shrunk, ups, plan, part=part)
        torch.testing.assert_close(y, base + added, rtol=1e-5, atol=1e-5)
        assert torch.equal(y[[0, 4]], base[[0, 4]])


def test_outputs_of_another_shape_or_dtype_are_refused() -> None:
    pool = Pool()
    plan = plan_of((2, pool.add(4).slot))
    downs = gather_a(pool.a[0], SHAPES[0], plan)
    shrunk = lora_shrink(pool.normal(2, 24), downs, SHAPES[0], plan)
    ups = gather_b(pool.b[0], SHAPES[0], plan, part=0)
    for shape in ((2, 8), (3, 16), (1, 16), (1, 2, 16)):
        with pytest.raises(ValueError, match="y is"):
            lora_expand_add(torch.zeros(shape), shrunk, ups, plan, part=0)
    y = torch.zeros(2, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtypes differ"):
        lora_expand_add(y, shrunk, ups, plan, part=0)


def test_an_adapter_that_misses_a_group_adds_exact_zeros_there() -> None:
    pool = Pool()
    first, second = pool.add(5, groups=[0]), pool.add(12, groups=[1])
    segments = [(1, first), (1, second), (9, first), (9, second)]
    left, right = pool.run(segments, 0), pool.run(segments, 1)
    assert not left[1].any()
    assert not left[11:].any()
    assert not right[0].any()
    assert not right[2:11].any()


def test_rows_of_the_base_get_exact_zeros_beside_rows_with_adapters() -> None:
    pool = Pool()
    found = pool.run([(1, pool.add(5)), (1, None), (10, pool.add(64)), (10, None)], 0)
    assert found[0].any()
    assert not found[1].any()
    assert not found[12:].any()


def test_a_step_without_adapters_has_no_plan() -> None:
    none_here = SlotPages(((), ()), 1.0, 0)
    assert (
        LoraPlan.build([(0, 1, None), (1, 9, None)], groups=2, device=CPU, dtype=torch.float32)
        is None
    )
    assert LoraPlan.build([(0, 1, none_here)], groups=2, device=CPU, dtype=torch.float32) is None
    assert LoraPlan.build([], groups=2, device=CPU, dtype=torch.float32) is None


def test_a_group_that_no_adapter_of_the_step_touches_reads_nothing() -> None:
    pool = Pool()
    plan = LoraPlan.build(
        [(0, 1, pool.add(4, groups=[1]).slot)], groups=2, device=CPU, dtype=torch.float32
    )
    assert plan is not None
    assert plan.groups[0] is None
    assert plan.groups[1] is not None


def test_the_operator_writes_to_no_page() -> None:
    pool = Pool()
    adapter = pool.add(12)
    before = [tensor.clone() for tensor in (*pool.a, *pool.b)]
    pool.run([(1, adapter), (20, adapter), (1, None)], 0)
    for tensor, was in zip((*pool.a, *pool.b), before, strict=True):
        assert torch.equal(tensor[0], torch.zeros_like(tensor[0]))
        assert torch.equal(torch.nan_to_num(tensor, nan=7.0), torch.nan_to_num(was, nan=7.0))


def test_control_a_page_of_another_adapter_in_the_list_is_seen() -> None:
    pool = Pool()
    adapter, other = pool.add(12), pool.add(12)
    own = adapter.slot.pages[0]
    adapter.slot = SlotPages(((own[0], other.slot.pages[0][1]), adapter.slot.pages[1]), 1.5, 0)
    with pytest.raises(AssertionError):
        pool.run([(1, adapter)], 0)


def test_control_a_page_that_was_never_written_is_seen() -> None:
    pool = Pool()
    adapter = pool.add(12)
    adapter.slot = SlotPages(((adapter.slot.pages[0][0], pool.free[0][0]), ()), 1.5, 0)
    with pytest.raises(AssertionError):
        pool.run([(1, adapter)], 0)


def test_a_row_that_is_not_finite_leaves_its_neighbours_alone() -> None:
    pool = Pool()
    slot, other = pool.add(12).slot, pool.add(5).slot
    plan = plan_of((1, slot), (1, other), (2, slot), (9, other), (1, None), (ROWS, slot))
    x = pool.normal(plan.rows, SHAPES[0].in_features)
    clean = lora_delta(x, pool.a[0], pool.b[0], SHAPES[0], plan)
    x[1] = torch.nan
    x[4] = torch.inf
    found = lora_delta(x, pool.a[0], pool.b[0], SHAPES[0], plan)
    untouched = [row for row in range(plan.rows) if row not in (1, 4)]
    assert torch.equal(found[untouched], clean[untouched])
    assert not found[[1, 4]].isfinite().any()


@pytest.mark.parametrize("length", [1, ROWS + 1])
def test_bfloat16_pools_give_bfloat16_near_the_float32_product(length: int) -> None:
    pool = Pool()
    slot = pool.add(12, scale=1.3).slot
    x = pool.normal(length, SHAPES[0].in_features).bfloat16()
    a, b = pool.a[0].bfloat16(), pool.b[0].bfloat16()
    found = lora_delta(x, a, b, SHAPES[0], plan_of((length, slot), dtype=torch.bfloat16))
    exact = lora_delta(x.float(), a.float(), b.float(), SHAPES[0], plan_of((length, slot)))
    assert found.dtype is torch.bfloat16
    assert (found.float() - exact).norm() <= 0.01 * exact.norm()


def call(
    *,
    x: torch.Tensor | None = None,
    a: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    rows: int = 2,
    dtype: torch.dtype = torch.float32,
) -> None:
    """A call that is valid but for what is given."""
    pool = Pool()
    lora_delta(
        pool.normal(2, SHAPES[0].in_features) if x is None else x,
        pool.a[0] if a is None else a,
        pool.b[0] if b is None else b,
        SHAPES[0],
        plan_of((rows, pool.add(4).slot), dtype=dtype),
    )


def test_operands_that_fit_are_not_refused() -> None:
    call()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 23), torch.float32),
        ((2, 25), torch.float32),
        ((1, 2, 24), torch.float32),
        ((24,), torch.float32),
        ((2, 24), torch.bfloat16),
        ((2, 24), torch.float64),
    ],
)
def test_rows_of_another_shape_or_dtype_are_refused(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=r"expected|dtypes differ"):
        call(x=torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((PAGES, 3, PAGE_RANKS, 23), torch.float32),
        ((PAGES, 2, PAGE_RANKS, 24), torch.float32),
        ((PAGES, 3, PAGE_RANKS // 2, 24), torch.float32),
        ((PAGES, 1, 3, PAGE_RANKS, 24), torch.float32),
        ((PAGES + 1, 3, PAGE_RANKS, 24), torch.float32),
        ((PAGES, 3, PAGE_RANKS, 24), torch.float16),
    ],
)
def test_a_pages_of_another_shape_or_dtype_are_refused(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=r"A pages|dtypes differ"):
        call(a=torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((PAGES, PAGE_RANKS, 31), torch.float32),
        ((PAGES, PAGE_RANKS * 2, 32), torch.float32),
        ((PAGES, 1, PAGE_RANKS, 32), torch.float32),
        ((PAGES, PAGE_RANKS, 32), torch.bfloat16),
    ],
)
def test_b_pages_of_another_shape_or_dtype_are_refused(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=r"B pages|dtypes differ"):
        call(b=torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("rows", [1, 3, ROWS, ROWS + 1])
def test_a_plan_made_for_another_number_of_rows_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="rows"):
        call(rows=rows)


def test_a_plan_made_for_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtypes differ"):
        call(dtype=torch.bfloat16)

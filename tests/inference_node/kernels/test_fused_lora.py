"""The Triton LoRA kernels compute what the references do: interpreted, or on a card if any."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from inference_node.kernels.lora import (
    GroupPool,
    GroupShape,
    LoraPlan,
    RowPages,
    SlotPages,
    expand_add_rows,
    shrink_rows,
)
from tests.inference_node.kernels.device import DEVICE, assert_close_rows, poison_empty

fused = pytest.importorskip("inference_node.kernels.lora.fused", exc_type=ImportError)

SHAPES = (GroupShape(24, (16, 8, 8)), GroupShape(136, (33, 6)), GroupShape(40, (200,)))
"""Siblings of unequal widths, widths of no power of two, and a linear on its own."""
SMALL = {
    "pairs": fused.Launch(rows=1, split_in=64, most=2, block_in=32, block_out=32),
    "decode": fused.Launch(rows=16, split_in=64, most=8, block_in=32, block_out=32),
    "prompt": fused.Launch(rows=32, split_in=128, most=8, block_in=64, block_out=128),
}
DTYPES = (torch.float32, torch.bfloat16)
PAGES, LAYERS, LAYER = 64, 3, 1
Slots = Sequence[SlotPages | None]


def pool_of(shape: GroupShape, dtype: torch.dtype, slots: Slots) -> GroupPool:
    """Random pages in one layer; whatever no row may read is NaN, the null page too."""
    torch.manual_seed(shape.in_features)
    a = torch.full((PAGES, LAYERS, *shape.a_page), torch.nan, dtype=dtype)
    b = torch.full((PAGES, LAYERS, *shape.b_page), torch.nan, dtype=dtype)
    for page in {page for slot in slots if slot is not None for page in slot.pages[0]}:
        a[page, LAYER] = torch.randn(shape.a_page) / 4
        b[page, LAYER] = torch.randn(shape.b_page) / 4
    return GroupPool(shape, a.to(DEVICE), b.to(DEVICE))


def route(slots: Slots, lengths: Sequence[int]) -> RowPages:
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    plan = LoraPlan.build(
        list(zip(starts, lengths, slots, strict=True)),
        groups=1,
        device=DEVICE,
        dtype=torch.float32,
        in_place=True,
    )
    assert plan is not None
    assert plan.groups[0] is not None
    assert plan.groups[0].single is not None
    return plan.groups[0].single


def adapters(counts: Sequence[int], seed: int = 0) -> list[SlotPages | None]:
    """One of `counts[i]` pages each, scattered over the pool; none for 0."""
    free = random.Random(seed).sample(range(1, PAGES), PAGES - 1)
    slots: list[SlotPages | None] = []
    for stamp, count in enumerate(counts):
        own, free = tuple(free[:count]), free[count:]
        slots.append(SlotPages((own,), 0.5 + stamp / 4, stamp) if count else None)
    return slots


def zipf(rows: int) -> list[SlotPages | None]:
    some = adapters((1, 2, 0, 8, 3, 1))
    weights = [1 / place for place in range(1, len(some) + 1)]
    return random.Random(rows).choices(some, weights, k=rows)


MIXES = {
    "one": (adapters((2,)) * 6, [1] * 6),
    "all distinct": (adapters((1, 2, 1, 2, 1, 2)), [1] * 6),
    "zipf": (zipf(20), [1] * 20),
    "ranks 1 to 64": (adapters((8, 0, 1, 4, 3, 0, 2, 7)), [1] * 8),
    "prompts": (adapters((1, 0, 3, 2)), [1, 7, 70, 5]),
}


def compare(
    shape: GroupShape, dtype: torch.dtype, mix: str, launch: str, *, longer: bool = False
) -> None:
    slots, lengths = MIXES[mix]
    rows, pool = route(slots, lengths), pool_of(shape, dtype, slots)
    count = sum(lengths)
    x = torch.randn(count, shape.in_features).to(dtype).to(DEVICE)
    expected = torch.randn(count, shape.out_total).to(dtype).to(DEVICE)
    found = expected.clone()
    h = shrink_rows(x, pool, LAYER, rows)
    expand_add_rows(expected, h, pool, LAYER, rows)

    kernels = fused.FusedRows(SMALL[launch])
    given = padded(rows, pairs=5, runs=3) if longer else rows
    shares = kernels.shrink_rows(x, pool, LAYER, given)
    kernels.expand_add_rows(found, shares, pool, LAYER, given)
    assert_close_rows(shares.sum(0)[: len(h)], h)
    assert_close_rows(found, expected)


def padded(rows: RowPages, *, pairs: int, runs: int) -> RowPages:
    """The same routing in longer tensors, as a captured step has them."""

    def longer(tensor: torch.Tensor, by: int, value: float) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (0, by), value=value)

    return replace(
        rows,
        first=longer(rows.first, runs, int(rows.first[-1])),
        row=longer(rows.row, pairs, 0),
        page=longer(rows.page, pairs, 0),
        scale=longer(rows.scale, pairs, 0.0),
        tile=longer(rows.tile, runs, int(rows.tile[-1])),
        widest=rows.widest + 1,
    )


@pytest.mark.parametrize("launch", SMALL)
@pytest.mark.parametrize("mix", MIXES)
def test_every_mix_of_adapters_gets_the_references_product(
    mix: str, launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_empty(monkeypatch)
    compare(SHAPES[0], torch.float32, mix, launch)


@pytest.mark.parametrize("launch", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_type_gets_the_references_product(
    shape: GroupShape, dtype: torch.dtype, launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_empty(monkeypatch)
    compare(shape, dtype, "ranks 1 to 64", launch)


@pytest.mark.parametrize("launch", SMALL)
def test_routing_that_is_longer_than_the_step_reads_nothing_it_should_not(
    launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_empty(monkeypatch)
    compare(SHAPES[0], torch.float32, "ranks 1 to 64", launch, longer=True)


@pytest.mark.parametrize("launch", SMALL)
def test_rows_of_the_base_are_left_as_they_were_to_the_bit(launch: str) -> None:
    slots, lengths = MIXES["ranks 1 to 64"]
    rows, pool = route(slots, lengths), pool_of(SHAPES[0], torch.float32, slots)
    before = torch.randn(len(slots), SHAPES[0].out_total, device=DEVICE)
    y = before.clone()
    kernels = fused.FusedRows(SMALL[launch])
    x = torch.randn(len(slots), SHAPES[0].in_features, device=DEVICE)
    kernels.expand_add_rows(y, kernels.shrink_rows(x, pool, LAYER, rows), pool, LAYER, rows)
    for index, slot in enumerate(slots):
        assert torch.equal(y[index], before[index]) == (slot is None)


@pytest.mark.parametrize("launch", SMALL)
def test_a_row_does_not_depend_on_its_neighbours_and_comes_out_the_same_each_time(
    launch: str,
) -> None:
    slots, lengths = MIXES["zipf"]
    shape, kernels = SHAPES[0], fused.FusedRows(SMALL[launch])
    pool = pool_of(shape, torch.float32, slots)
    x = torch.randn(len(slots), shape.in_features, device=DEVICE)

    def run(chosen: Slots) -> torch.Tensor:
        rows, y = route(chosen, lengths), torch.zeros(len(slots), shape.out_total, device=DEVICE)
        kernels.expand_add_rows(y, kernels.shrink_rows(x, pool, LAYER, rows), pool, LAYER, rows)
        return y

    whole = run(slots)
    assert torch.equal(run(slots), whole)
    last = next(index for index, slot in reversed(list(enumerate(slots))) if slot is not None)
    alone: list[SlotPages | None] = [None] * len(slots)
    alone[last] = slots[last]
    assert torch.equal(run(alone)[last], whole[last])
    x[[row for row in range(len(slots)) if row != last]] = torch.nan
    assert torch.equal(run(slots)[last], whole[last])


@pytest.mark.parametrize("launch", SMALL)
@pytest.mark.parametrize("fault", ["page", "scale", "row"])
def test_control_a_route_that_is_off_by_one_is_seen(fault: str, launch: str) -> None:
    slots = adapters((1,) * 8)
    rows, pool = route(slots, [1] * 8), pool_of(SHAPES[0], torch.float32, slots)
    x = torch.randn(len(slots), SHAPES[0].in_features, device=DEVICE)
    moved = replace(rows, **{fault: getattr(rows, fault).roll(1)})
    kernels = fused.FusedRows(SMALL[launch])
    right = kernels.shrink_rows(x, pool, LAYER, rows)
    assert not torch.allclose(right, kernels.shrink_rows(x, pool, LAYER, moved), atol=1e-2)


def test_the_launch_follows_from_sizes_alone() -> None:
    slot = adapters((1,))
    assert fused.launch_of(route(slot * 4, [1] * 4)) is fused.PAIRS
    assert fused.launch_of(route(adapters((1,) * 40), [1] * 40)) is fused.DECODE
    assert fused.launch_of(route(slot, [200])) is fused.PROMPT
    assert fused.launch_of(padded(route(slot * 4, [1] * 4), pairs=0, runs=40)) is fused.DECODE


def test_shapes_and_types_that_do_not_fit_are_refused_before_a_launch() -> None:
    slots = adapters((1,))
    rows, pool = route(slots, [1]), pool_of(SHAPES[0], torch.float32, slots)
    kernels = fused.FusedRows()
    x, y = torch.zeros(1, 24, device=DEVICE), torch.zeros(1, 32, device=DEVICE)
    h = kernels.shrink_rows(x, pool, LAYER, rows)
    for bad in (
        x[:, 1:],
        x[0],
        x.double(),
        x.bfloat16(),
        torch.zeros(1, 48, device=DEVICE)[:, ::2],
    ):
        with pytest.raises(ValueError, match=r"rows are|dtypes"):
            kernels.shrink_rows(bad, pool, LAYER, rows)
    for bad_y in (y[:, 1:], y.bfloat16()):
        with pytest.raises(ValueError, match=r"rows are|dtypes"):
            kernels.expand_add_rows(bad_y, h, pool, LAYER, rows)
    for bad_h in (h[0], h[:, :, :1]):
        with pytest.raises(ValueError, match="h is"):
            kernels.expand_add_rows(y, bad_h, pool, LAYER, rows)

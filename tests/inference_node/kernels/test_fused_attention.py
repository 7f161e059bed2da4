"""The Triton attention kernels compute what the references do: interpreted, or on a card."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from inference_node.kernels.paged_attention import (
    AttentionPlan,
    Chunk,
    paged_attention,
    write_kv,
)
from inference_node.kernels.paged_attention.prefill import choose_prefill, one_by_one
from tests.inference_node.kernels.device import DEVICE, assert_close_rows, poison_empty

fused = pytest.importorskip("inference_node.kernels.paged_attention.fused", exc_type=ImportError)

DTYPES = (torch.float32, torch.bfloat16)
BLOCK = 16
CONTEXTS = (1, 15, 16, 17, 70)
SMALL = fused.FusedAttention(one_by_one, split=32, tokens=16)
"""Several splits of several turns each, at lengths an interpreter can bear."""

Cache = tuple[AttentionPlan, torch.Tensor, torch.Tensor]


def cache_of(
    contexts: Sequence[int], kv_heads: int, dim: int, dtype: torch.dtype, *, new: int = 1
) -> Cache:
    """Random keys and values, every sequence's blocks scattered, and NaN where nobody may look."""
    torch.manual_seed(dim)
    needed = [-(-context // BLOCK) for context in contexts]
    free = random.Random(dim).sample(range(1, sum(needed) + 4), sum(needed))
    shape = (sum(needed) + 4, BLOCK, kv_heads, dim)
    k, v = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    chunks = []
    for context, count in zip(contexts, needed, strict=True):
        table, free = tuple(free[:count]), free[count:]
        chunks.append(Chunk(table, max(0, context - new), min(new, context)))
        for cache in (k, v):
            for position in range(context):
                spot = cache[table[position // BLOCK], position % BLOCK]
                spot.copy_(torch.randn(kv_heads, dim))
    chunks.sort(key=lambda chunk: chunk.length != 1)
    plan = AttentionPlan.build(chunks, block_tokens=BLOCK, device=DEVICE)
    return plan, k.to(dtype).to(DEVICE), v.to(dtype).to(DEVICE)


def compare(
    cache: Cache, heads: int, *, window: int | None = None, softcap: float | None = None
) -> None:
    plan, k, v = cache
    if window is not None:
        plan = plan.within(window)
    dim = k.shape[-1]
    # Heads beside rows, as transformers hands them over.
    rows = plan.slots.shape[0]
    q = torch.randn(heads, rows, dim).to(k.dtype).to(DEVICE).transpose(0, 1)
    clean = k.nan_to_num(), v.nan_to_num()
    expected = paged_attention(q, *clean, plan, scale=dim**-0.5, softcap=softcap)
    for kernels in (SMALL, fused.FusedAttention(one_by_one)):
        given = (k, v) if not plan.long else clean
        found = kernels.attend(q, *given, plan, scale=dim**-0.5, softcap=softcap)
        assert_close_rows(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 16), (8, 1, 128), (6, 2, 80), (2, 1, 256)]
)
def test_every_shape_of_heads_gets_the_references_attention_and_reads_nothing_past_a_context(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(CONTEXTS, kv_heads, dim, dtype)
    poison_empty(monkeypatch)
    compare(cache, heads)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 1, 20, 33])
def test_windows_and_capped_scores_are_the_references(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(CONTEXTS, 2, 16, torch.float32)
    poison_empty(monkeypatch)
    compare(cache, 6, window=window, softcap=softcap)


def test_prompts_beside_decoding_rows_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of((1, 5, 40), 2, 16, torch.float32, new=7)
    poison_empty(monkeypatch)
    compare(cache, 4)
    compare(cache, 4, window=9)


def test_prompts_in_one_launch_are_the_ones_taken_one_by_one_where_there_is_such_a_launch() -> None:
    prefill = choose_prefill(DEVICE)
    if prefill is one_by_one:
        pytest.skip("no varlen_attn for this device")
    plan, k, v = cache_of((5, 40), 2, 64, torch.bfloat16, new=7)
    q = torch.randn(12, 4, 64, device=DEVICE).bfloat16()
    found, expected = torch.zeros_like(q), torch.zeros_like(q)
    for each, out in ((prefill, found), (one_by_one, expected)):
        each(out, q, k.nan_to_num(), v.nan_to_num(), plan, 0.125, None)
    assert_close_rows(found, expected)


def test_a_row_does_not_depend_on_how_wide_the_table_is_or_on_its_neighbours() -> None:
    plan, k, v = cache_of(CONTEXTS, 2, 16, torch.float32)
    q = torch.randn(len(CONTEXTS), 4, 16, device=DEVICE)
    whole = SMALL.attend(q, k, v, plan, scale=0.25)
    for row, context in enumerate(CONTEXTS):
        used = -(-context // BLOCK)
        table = tuple(plan.decode_blocks[row, :used].tolist())
        alone = AttentionPlan.build(
            [Chunk(table, context - 1, 1)], block_tokens=BLOCK, device=DEVICE
        )
        found = SMALL.attend(q[row : row + 1], k, v, alone, scale=0.25)
        torch.testing.assert_close(found[0], whole[row], rtol=1e-6, atol=1e-6)


def test_a_value_that_is_not_finite_shows_in_its_own_row_and_in_no_other() -> None:
    plan, k, v = cache_of((20, 20), 2, 16, torch.float32)
    q = torch.randn(2, 4, 16, device=DEVICE)
    clean = SMALL.attend(q, k, v, plan, scale=0.25)
    k[int(plan.decode_blocks[0, 0]), 5] = torch.nan
    found = SMALL.attend(q, k, v, plan, scale=0.25)
    assert found[0].isnan().all()
    assert torch.equal(found[1], clean[1])


@pytest.mark.parametrize("fault", [-1, 1])
def test_control_a_context_that_is_off_by_one_is_seen(fault: int) -> None:
    plan, k, v = cache_of((20, 30), 2, 16, torch.float32)
    q = torch.randn(2, 4, 16, device=DEVICE)
    right = SMALL.attend(q, k, v, plan, scale=0.25)
    plan.decode_contexts.add_(fault)
    assert not torch.allclose(right, SMALL.attend(q, k, v, plan, scale=0.25), atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_keys_go_to_the_slots_of_the_plan_and_nowhere_else(dtype: torch.dtype) -> None:
    plan, k_cache, v_cache = cache_of((3, 18, 40), 3, 24, dtype)
    k, v = (torch.randn(3, 3, 24).to(dtype).to(DEVICE).transpose(0, 1) for _ in "kv")
    expected = k_cache.clone(), v_cache.clone()
    write_kv(*expected, k, v, plan)
    SMALL.write_kv(k_cache, v_cache, k, v, plan)
    for found, wanted in zip((k_cache, v_cache), expected, strict=True):
        assert torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))


def test_shapes_and_types_that_do_not_fit_are_refused_before_a_launch() -> None:
    plan, k, v = cache_of((4,), 2, 16, torch.float32)
    good = torch.zeros(1, 2, 16, device=DEVICE)
    for bad in (torch.zeros(1, 2, 17), torch.zeros(1, 3, 16), torch.zeros(2, 2, 16)):
        bad = bad.to(DEVICE)
        with pytest.raises(ValueError, match="cache"):
            SMALL.write_kv(k, v, bad, bad, plan)
    with pytest.raises(ValueError, match="dtypes"):
        SMALL.write_kv(k, v, good.bfloat16(), good.bfloat16(), plan)
    for q in (torch.zeros(1, 3, 16), torch.zeros(1, 2, 15)):
        with pytest.raises(ValueError, match="does not fit"):
            SMALL.attend(q.to(DEVICE), k, v, plan, scale=1.0)
    with pytest.raises(ValueError, match="contiguous"):
        SMALL.attend(good, k.transpose(0, 1), v.transpose(0, 1), plan, scale=1.0)

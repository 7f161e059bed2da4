"""Paged attention equals a plain softmax over each sequence's own keys, token by token."""

from __future__ import annotations

import random

import pytest
import torch

from inference_node.kernels.paged_attention import AttentionPlan, Chunk, paged_attention, write_kv

CPU = torch.device("cpu")
BLOCK, DIM, HEADS, KV_HEADS, BLOCKS = 4, 16, 6, 2, 48
SCALE = DIM**-0.5


class Cache:
    """A paged cache and, beside it, the same keys and values as plain lists."""

    def __init__(self, *, seed: int = 0, heads: int = HEADS, kv_heads: int = KV_HEADS) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.heads = heads
        shape = (BLOCKS + 1, BLOCK, kv_heads, DIM)
        self.k, self.v = torch.zeros(shape), torch.zeros(shape)
        self.free = random.Random(seed).sample(range(1, BLOCKS + 1), BLOCKS)
        self.tables: dict[str, list[int]] = {}
        self.past: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def step(self, *work: tuple[str, int]) -> torch.Tensor:
        """New tokens of several sequences; the result has been compared with the plain one."""
        chunks, owners = [], []
        for name, length in work:
            table = self.tables.setdefault(name, [])
            start = len(self.past.setdefault(name, []))
            while len(table) * BLOCK < start + length:
                table.append(self.free.pop())
            chunks.append(Chunk(tuple(table), start, length))
            owners += [name] * length
        plan = AttentionPlan.build(chunks, block_tokens=BLOCK, device=CPU)
        rows = len(owners)
        k, v = (self.normal(rows, *self.k.shape[2:]) for _ in "kv")
        q = self.normal(rows, self.heads, DIM)
        write_kv(self.k, self.v, k, v, plan)
        found = paged_attention(q, self.k, self.v, plan, scale=SCALE)
        expected = torch.zeros_like(found)
        for row, name in enumerate(owners):
            self.past[name].append((k[row], v[row]))
            expected[row] = plain(q[row], self.past[name])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        return found

    def poison(self, blocks: list[int]) -> None:
        self.k[blocks] = torch.nan
        self.v[blocks] = torch.nan


def plain(q: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """One query [heads, head_dim] over all keys it may see."""
    kv_heads = past[0][0].shape[0]
    out = torch.zeros_like(q)
    for head in range(q.shape[0]):
        shared = head * kv_heads // q.shape[0]
        scores = torch.stack([SCALE * torch.dot(q[head], k[shared]) for k, _ in past])
        weights = (scores - scores.max()).exp()
        weights = weights / weights.sum()
        out[head] = sum(w * v[shared] for w, (_, v) in zip(weights, past, strict=True))
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1)])
def test_query_heads_share_key_heads_in_equal_groups(heads: int, kv_heads: int) -> None:
    cache = Cache(heads=heads, kv_heads=kv_heads)
    cache.step(("a", 7))
    cache.step(("a", 1))
    cache.step(("a", 1), ("b", 5))
    cache.step(("a", 1), ("b", 1))


@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 9, 17])
def test_a_whole_prompt_sees_only_what_came_before_each_token(length: int) -> None:
    Cache(seed=length).step(("a", length))


def test_a_prompt_of_one_token_is_a_decode_row() -> None:
    Cache().step(("a", 1), ("b", 1))


@pytest.mark.parametrize("first", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("second", [2, 4, 7])
def test_a_prompt_in_chunks_sees_its_earlier_chunks(first: int, second: int) -> None:
    cache = Cache(seed=first * 10 + second)
    cache.step(("a", first))
    cache.step(("a", second))
    cache.step(("a", 1))


def test_rows_of_very_different_lengths_decode_together() -> None:
    cache = Cache()
    for length, name in enumerate("abcdefg", start=1):
        cache.step((name, length * 3))
    for _ in range(5):
        cache.step(*((name, 1) for name in "gabfced"))


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_decoding_prompts_and_chunks_equals_the_loop(seed: int) -> None:
    cache, rng = Cache(seed=seed), random.Random(seed)
    names = "abcde"
    for _ in range(6):
        work = [(name, rng.choice((1, 1, 2, 3, 6))) for name in rng.sample(names, 4)]
        cache.step(*sorted(work, key=lambda item: item[1] != 1))


@pytest.mark.parametrize("work", [[("a", 1)], [("a", 3)], [("a", 1), ("b", 3), ("c", 6)]])
def test_values_that_are_not_finite_in_blocks_of_others_do_not_leak(
    work: list[tuple[str, int]],
) -> None:
    cache = Cache()
    cache.step(*((name, 5) for name in "abc"))
    cache.step(("other", 9))
    clean, dirty = cache.free[:8], cache.free[8:]
    cache.poison([*cache.tables["other"], *dirty])
    cache.free = clean
    assert cache.step(*work).isfinite().all()
    assert cache.step(("a", 1), ("b", 1)).isfinite().all()


def test_a_poisoned_neighbour_in_the_batch_does_not_change_a_row() -> None:
    cache = Cache()
    cache.step(("a", 6), ("b", 9))
    cache.poison(cache.tables["b"])
    plan = AttentionPlan.build(
        [Chunk(tuple(cache.tables[name]), start, 1) for name, start in (("a", 5), ("b", 8))],
        block_tokens=BLOCK,
        device=CPU,
    )
    q = cache.normal(2, HEADS, DIM)
    found = paged_attention(q, cache.k, cache.v, plan, scale=SCALE)
    torch.testing.assert_close(found[0], plain(q[0], cache.past["a"]), rtol=1e-5, atol=1e-5)
    assert not found[1].isfinite().all()


def test_control_a_block_that_is_not_zeroed_when_handed_out_leaks_into_decode() -> None:
    """Why the runner zeroes fresh blocks: masked values are multiplied by zero, not left out."""
    cache = Cache()
    cache.step(("a", 1))
    cache.poison(cache.free)
    with pytest.raises(AssertionError):
        cache.step(("b", 1))


def test_what_an_earlier_request_left_in_a_re_used_block_does_not_leak_into_a_prompt() -> None:
    cache = Cache()
    cache.poison(cache.free)
    cache.step(("a", 2))
    cache.step(("a", 3))


def test_new_keys_go_to_the_slots_of_the_plan_and_nowhere_else() -> None:
    cache = Cache()
    cache.step(("a", 5), ("b", 3))
    touched = {*cache.tables["a"], *cache.tables["b"]}
    for block in range(BLOCKS + 1):
        assert bool(cache.k[block].any()) == (block in touched)
        assert bool(cache.v[block].any()) == (block in touched)
    last = cache.tables["a"][1]
    assert torch.equal(cache.k[last, 0], cache.past["a"][4][0])
    assert not cache.k[last, 1:].any()


def test_control_a_mask_that_shows_one_key_too_many_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = AttentionPlan.build

    def off_by_one(chunks: list[Chunk], *, block_tokens: int, device: torch.device) -> object:
        plan = original(chunks, block_tokens=block_tokens, device=device)
        for row in plan.decode_mask[:, 0, 0]:
            row[min(int(row.sum()), len(row) - 1)] = True
        return plan

    monkeypatch.setattr(AttentionPlan, "build", off_by_one)
    cache = Cache()
    cache.step(("a", 5))
    with pytest.raises(AssertionError):
        cache.step(("a", 1))


def test_single_token_chunks_after_longer_ones_are_refused() -> None:
    chunks = [Chunk((1,), 0, 2), Chunk((2,), 0, 1)]
    with pytest.raises(ValueError, match="must come first"):
        AttentionPlan.build(chunks, block_tokens=BLOCK, device=CPU)


def test_a_block_table_that_is_too_short_is_refused() -> None:
    with pytest.raises(IndexError):
        AttentionPlan.build([Chunk((1,), BLOCK, 1)], block_tokens=BLOCK, device=CPU)


def test_shapes_that_do_not_fit_the_cache_are_refused() -> None:
    cache = Cache()
    plan = AttentionPlan.build([Chunk((1,), 0, 1)], block_tokens=BLOCK, device=CPU)
    good = torch.zeros(1, KV_HEADS, DIM)
    for bad in (torch.zeros(1, KV_HEADS, DIM + 1), torch.zeros(1, KV_HEADS + 1, DIM)):
        with pytest.raises(ValueError, match="cache"):
            write_kv(cache.k, cache.v, bad, bad, plan)
        with pytest.raises(ValueError, match="cache"):
            write_kv(cache.k, cache.v, good, bad, plan)
    for shape in ((1, HEADS + 1, DIM), (1, HEADS, DIM - 1), (HEADS, DIM)):
        with pytest.raises(ValueError, match="does not fit"):
            paged_attention(torch.zeros(shape), cache.k, cache.v, plan, scale=SCALE)

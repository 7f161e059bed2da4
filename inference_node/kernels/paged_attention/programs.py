"""The Triton programs of `fused`: attention of single-token rows over paged keys, and their write.

A cache is [blocks, BLOCK_TOKENS, kv_heads, DIM] in one piece; offsets into it are 64-bit. Keys past
a row's context and before its window are not read at all.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
SPLITS_AT_ONCE = tl.constexpr(8)


@triton.jit
def write_rows(
    k_cache,
    v_cache,
    k,  # [rows, kv_heads, DIM]
    v,
    slots,
    k_row,
    k_head,
    v_row,
    v_head,
    WIDTH: tl.constexpr,
    WIDTH_ROUNDED: tl.constexpr,
    DIM: tl.constexpr,
):
    """All key heads of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH_ROUNDED)
    live = at < WIDTH
    target = tl.load(slots + row).to(tl.int64) * WIDTH + at
    head = at // DIM
    dim = at % DIM
    tl.store(k_cache + target, tl.load(k + row * k_row + head * k_head + dim, mask=live), mask=live)
    tl.store(v_cache + target, tl.load(v + row * v_row + head * v_head + dim, mask=live), mask=live)


@triton.jit
def attend_split(
    out,  # [rows, heads, DIM]; with WHOLE the result, else sums of this split [splits, rows, ...]
    peaks,  # [splits, rows, heads] float32: the largest score, in powers of two
    masses,  # [splits, rows, heads] float32: the sum of weights under that peak
    q,  # [rows, heads, DIM]
    k_cache,
    v_cache,
    table,  # [rows, blocks]
    contexts,  # [rows]
    scale,
    softcap,
    window,
    q_row,
    q_head,
    table_row,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROUNDED: tl.constexpr,
    DIM: tl.constexpr,
    DIM_ROUNDED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    WHOLE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The query heads of one key head of one row, over SPLIT positions of its context."""
    row = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(contexts + row).to(tl.int32)
    low = split * SPLIT
    high = tl.minimum(context, low + SPLIT)
    if WINDOWED:
        low = tl.maximum(low, context - window)
    if low >= high:
        return
    group = tl.arange(0, GROUP_ROUNDED)
    dim = tl.arange(0, DIM_ROUNDED)
    head = kv * GROUP + group
    mine = (group < GROUP)[:, None] & (dim < DIM)[None, :]
    qs = tl.load(q + row * q_row + head[:, None] * q_head + dim[None, :], mask=mine, other=0.0)
    if EXACT:
        qs = qs.to(tl.float32)
    peak = tl.full([GROUP_ROUNDED], -float("inf"), dtype=tl.float32)
    mass = tl.zeros([GROUP_ROUNDED], dtype=tl.float32)
    total = tl.zeros([GROUP_ROUNDED, DIM_ROUNDED], dtype=tl.float32)
    for start in range(low // TOKENS * TOKENS, high, TOKENS):
        token = start + tl.arange(0, TOKENS)
        seen = (token >= low) & (token < high)
        block = tl.load(table + row * table_row + token // BLOCK_TOKENS, mask=seen, other=0)
        place = block.to(tl.int64) * BLOCK_TOKENS + token % BLOCK_TOKENS
        place = place * (KV_HEADS * DIM) + kv * DIM
        keys = tl.load(
            k_cache + place[None, :] + dim[:, None],
            mask=seen[None, :] & (dim < DIM)[:, None],
            other=0.0,
        )
        values = tl.load(
            v_cache + place[:, None] + dim[None, :],
            mask=seen[:, None] & (dim < DIM)[None, :],
            other=0.0,
        )
        if EXACT:
            score = tl.dot(qs, keys.to(tl.float32), input_precision="ieee") * scale
        else:
            score = tl.dot(qs, keys) * scale
        if CAPPED:
            score = softcap * (1.0 - 2.0 / (tl.exp(score * (2.0 / softcap)) + 1.0))
        score = tl.where(seen[None, :], score * LOG2E, -float("inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        before = tl.exp2(peak - higher)
        mass = mass * before + tl.sum(weight, axis=1)
        total = total * before[:, None]
        if EXACT:
            total = tl.dot(weight, values.to(tl.float32), total, input_precision="ieee")
        else:
            total = tl.dot(weight.to(values.dtype), values, total)
        peak = higher
    if WHOLE:
        target = out + (row * HEADS + head)[:, None] * DIM + dim[None, :]
        tl.store(target, (total / mass[:, None]).to(out.dtype.element_ty), mask=mine)
    else:
        part = (split.to(tl.int64) * tl.num_programs(0) + row) * HEADS + head
        tl.store(out + part[:, None] * DIM + dim[None, :], total, mask=mine)
        tl.store(peaks + part, peak, mask=group < GROUP)
        tl.store(masses + part, mass, mask=group < GROUP)


@triton.jit
def join_splits(
    out,  # [rows, heads, DIM]
    sums,
    peaks,
    masses,
    contexts,
    window,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_ROUNDED: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """One head of one row: its splits in order, those that its context and window reach."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    rows = tl.num_programs(0)
    context = tl.load(contexts + row).to(tl.int32)
    first = 0
    if WINDOWED:
        first = tl.maximum(context - window, 0) // SPLIT
    last = (context + SPLIT - 1) // SPLIT
    dim = tl.arange(0, DIM_ROUNDED)
    peak = -float("inf")
    mass = 0.0
    total = tl.zeros([DIM_ROUNDED], dtype=tl.float32)
    for start in range(first, last, SPLITS_AT_ONCE):
        split = start + tl.arange(0, SPLITS_AT_ONCE)
        used = split < last
        part = (split.to(tl.int64) * rows + row) * HEADS + head
        peaks_here = tl.load(peaks + part, mask=used, other=-float("inf"))
        masses_here = tl.load(masses + part, mask=used, other=0.0)
        sums_here = tl.load(
            sums + part[:, None] * DIM + dim[None, :],
            mask=used[:, None] & (dim < DIM)[None, :],
            other=0.0,
        )
        higher = tl.maximum(peak, tl.max(peaks_here, axis=0))
        weight = tl.exp2(peaks_here - higher)
        before = tl.exp2(peak - higher)
        mass = mass * before + tl.sum(weight * masses_here, axis=0)
        total = total * before + tl.sum(weight[:, None] * sums_here, axis=0)
        peak = higher
    target = out + (row * HEADS + head) * DIM + dim
    tl.store(target, (total / mass).to(out.dtype.element_ty), mask=dim < DIM)

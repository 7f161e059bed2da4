"""The Triton programs of `fused`: one program computes one tile of one launch.

In every program `first`, `row`, `page`, `scale` and `tile` are those of `contract.RowPages`.
Offsets into the pool are 64-bit: a pool is larger than 2**31 elements. A pair on the null page does
no work and its h is never read. Nothing is shared between programs: no atomics, and every sum has
one order.
"""

import triton
import triton.language as tl

PAGE_RANKS = tl.constexpr(8)
RANKS_AT_ONCE = tl.constexpr(16)
"""Two pages: the least a tensor core takes of the summed dimension."""


@triton.jit(do_not_specialize=["pairs"])
def shrink_pairs(
    h,  # [splits, pairs, WIDTH] float32
    x,  # [rows, IN]
    a,  # [pages, WIDTH, IN], one layer
    row,
    page,
    scale,
    pairs,
    x_stride,
    a_stride,
    IN: tl.constexpr,
    WIDTH: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SPLIT_IN: tl.constexpr,
):
    """One pair and one share of the inputs: a page is read once, whole lines of it."""
    pair = tl.program_id(0)
    split = tl.program_id(1)
    number = tl.load(page + pair)
    if number == 0:
        return
    rank = tl.arange(0, RANKS)
    line = x + tl.load(row + pair).to(tl.int64) * x_stride
    down = a + number.to(tl.int64) * a_stride + rank[:, None] * IN
    total = tl.zeros([RANKS], dtype=tl.float32)
    for start in range(0, SPLIT_IN, BLOCK_IN):
        column = split * SPLIT_IN + start + tl.arange(0, BLOCK_IN)
        inside = column < IN
        xs = tl.load(line + column, mask=inside, other=0.0).to(tl.float32)
        live = (rank < WIDTH)[:, None] & inside[None, :]
        downs = tl.load(down + column[None, :], mask=live, other=0.0).to(tl.float32)
        total += tl.sum(downs * xs[None, :], axis=1)
    target = h + (split.to(tl.int64) * pairs + pair) * WIDTH + rank
    tl.store(target, total * tl.load(scale + pair), mask=rank < WIDTH)


@triton.jit(do_not_specialize=["pairs"])
def shrink_tiles(
    h,
    x,
    a,
    tile,
    first,
    row,
    page,
    scale,
    pairs,
    x_stride,
    a_stride,
    IN: tl.constexpr,
    WIDTH: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SPLIT_IN: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The rows of one tile, one of its pages and one share of the inputs, on tensor cores."""
    index = tl.program_id(0)
    which = tl.program_id(1)
    split = tl.program_id(2)
    run = tl.load(tile + index)
    end = tl.load(tile + index + 1)
    if run >= end:
        return
    begun = tl.load(first + run)
    if which >= tl.load(first + run + 1) - begun:
        return
    number = tl.load(page + begun + which)
    if number == 0:
        return
    rank = tl.arange(0, RANKS)
    down = a + number.to(tl.int64) * a_stride + rank[None, :] * IN
    for start in range(run, end, ROWS):
        runs = start + tl.arange(0, ROWS)
        live = runs < end
        pair = tl.load(first + runs, mask=live, other=0) + which
        line = tl.load(row + pair, mask=live, other=0).to(tl.int64) * x_stride
        total = tl.zeros([ROWS, RANKS], dtype=tl.float32)
        for offset in range(0, SPLIT_IN, BLOCK_IN):
            column = split * SPLIT_IN + offset + tl.arange(0, BLOCK_IN)
            inside = column < IN
            xs = tl.load(
                x + line[:, None] + column[None, :],
                mask=live[:, None] & inside[None, :],
                other=0.0,
            )
            downs = tl.load(
                down + column[:, None],
                mask=inside[:, None] & (rank < WIDTH)[None, :],
                other=0.0,
            )
            if EXACT:
                total = tl.dot(
                    xs.to(tl.float32), downs.to(tl.float32), total, input_precision="ieee"
                )
            else:
                total = tl.dot(xs, downs, total)
        total = total * tl.load(scale + pair, mask=live, other=0.0)[:, None]
        place = (split.to(tl.int64) * pairs + pair) * WIDTH
        tl.store(
            h + place[:, None] + rank[None, :],
            total,
            mask=live[:, None] & (rank < WIDTH)[None, :],
        )


@triton.jit(do_not_specialize=["pairs"])
def expand_runs(
    y,  # [rows, OUT]
    h,  # [splits, pairs, WIDTH] float32
    b,  # [pages, 8, OUT], one layer
    first,
    row,
    page,
    strips,  # [strips, 3]: slice, its first column and its end
    pairs,
    y_stride,
    b_stride,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_ROUNDED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One row and one strip of columns: adds the products of all its pages, rounded once."""
    run = tl.program_id(0)
    strip = tl.program_id(1)
    begun = tl.load(first + run)
    end = tl.load(first + run + 1)
    if begun >= end:
        return
    part = tl.load(strips + strip * 3)
    stop = tl.multiple_of(tl.load(strips + strip * 3 + 2), ALIGNED)
    column = tl.multiple_of(tl.load(strips + strip * 3 + 1), ALIGNED) + tl.arange(0, BLOCK_OUT)
    inside = column < stop
    rank = tl.arange(0, RANKS_AT_ONCE)
    split = tl.arange(0, SPLITS_ROUNDED)
    total = tl.zeros([BLOCK_OUT], dtype=tl.float32)
    for start in range(begun, end, 2):
        pair = start + rank // PAGE_RANKS
        number = tl.load(page + pair, mask=pair < end, other=0)
        live = number != 0
        place = (split.to(tl.int64)[:, None] * pairs + pair[None, :]) * WIDTH
        shares = tl.load(
            h + place + part * PAGE_RANKS + (rank % PAGE_RANKS)[None, :],
            mask=(split < SPLITS)[:, None] & live[None, :],
            other=0.0,
        )
        up = b + number.to(tl.int64) * b_stride + (rank % PAGE_RANKS) * OUT
        ups = tl.load(
            up[:, None] + column[None, :], mask=live[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(tl.sum(shares, axis=0)[:, None] * ups.to(tl.float32), axis=0)
    target = y + tl.load(row + begun).to(tl.int64) * y_stride + column
    total += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["pairs"])
def expand_tiles(
    y,
    h,
    b,
    tile,
    first,
    row,
    page,
    strips,
    pairs,
    y_stride,
    b_stride,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SPLITS: tl.constexpr,
    ALIGNED: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The rows of one tile and one strip of columns, on tensor cores.

    h is handed to them in two bfloat16 parts, so that it loses nothing that float32 sums keep.
    """
    index = tl.program_id(0)
    strip = tl.program_id(1)
    run = tl.load(tile + index)
    end = tl.load(tile + index + 1)
    if run >= end:
        return
    begun = tl.load(first + run)
    count = tl.load(first + run + 1) - begun
    if count == 0:
        return
    part = tl.load(strips + strip * 3)
    stop = tl.multiple_of(tl.load(strips + strip * 3 + 2), ALIGNED)
    column = tl.multiple_of(tl.load(strips + strip * 3 + 1), ALIGNED) + tl.arange(0, BLOCK_OUT)
    inside = column < stop
    rank = tl.arange(0, RANKS_AT_ONCE)
    for start in range(run, end, ROWS):
        runs = start + tl.arange(0, ROWS)
        live = runs < end
        own = tl.load(first + runs, mask=live, other=0)
        total = tl.zeros([ROWS, BLOCK_OUT], dtype=tl.float32)
        for page0 in range(0, count, 2):
            which = page0 + rank // PAGE_RANKS
            number = tl.load(page + begun + which, mask=which < count, other=0)
            used = number != 0
            place = (own[:, None] + which[None, :]).to(tl.int64) * WIDTH
            place += part * PAGE_RANKS + (rank % PAGE_RANKS)[None, :]
            shares = tl.zeros([ROWS, RANKS_AT_ONCE], dtype=tl.float32)
            for _ in tl.static_range(SPLITS):
                shares += tl.load(h + place, mask=live[:, None] & used[None, :], other=0.0)
                place += pairs * WIDTH
            up = b + number.to(tl.int64) * b_stride + (rank % PAGE_RANKS) * OUT
            ups = tl.load(
                up[:, None] + column[None, :], mask=used[:, None] & inside[None, :], other=0.0
            )
            if EXACT:
                total = tl.dot(shares, ups.to(tl.float32), total, input_precision="ieee")
            else:
                high = shares.to(ups.dtype)
                low = (shares - high.to(tl.float32)).to(ups.dtype)
                total = tl.dot(high, ups, total)
                total = tl.dot(low, ups, total)
        line = tl.load(row + own, mask=live, other=0).to(tl.int64) * y_stride
        target = y + line[:, None] + column[None, :]
        mask = live[:, None] & inside[None, :]
        total += tl.load(target, mask=mask, other=0.0).to(tl.float32)
        tl.store(target, total.to(y.dtype.element_ty), mask=mask)

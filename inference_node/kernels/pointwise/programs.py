"""The Triton programs of `fused`. Arithmetic is float32, rounded where the reference rounds."""

import triton
import triton.language as tl


@triton.jit
def add_norm_rows(
    out,  # [rows, WIDTH]
    x,  # [rows, WIDTH]
    delta,  # [rows, WIDTH]
    weight,  # [WIDTH]
    eps,
    x_row,
    delta_row,
    WIDTH: tl.constexpr,
    WIDTH_ROUNDED: tl.constexpr,
    ADDS: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH_ROUNDED)
    live = at < WIDTH
    value = tl.load(x + row * x_row + at, mask=live, other=0.0)
    if ADDS:
        more = tl.load(delta + row * delta_row + at, mask=live, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + row * x_row + at, value, mask=live)
    wide = value.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    normed = (wide * scale).to(x.dtype.element_ty).to(tl.float32)
    normed *= tl.load(weight + at, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + at, normed.to(out.dtype.element_ty), mask=live)


@triton.jit
def rotate_heads(
    q,  # [rows, HEADS, DIM]
    k_cache,  # [places, KV_HEADS, DIM]
    v_cache,
    qkv,  # [rows, HEADS + 2 * KV_HEADS, DIM]
    cos,  # [rows, DIM]
    sin,
    slots,  # [rows]
    qkv_row,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF_ROUNDED: tl.constexpr,
):
    """One query head of one row, or one key head and its values."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    low_at = tl.arange(0, HALF_ROUNDED)
    live = low_at < DIM // 2
    high_at = low_at + DIM // 2
    kind = qkv.dtype.element_ty
    source = qkv + row * qkv_row + head * DIM
    low = tl.load(source + low_at, mask=live, other=0.0).to(tl.float32)
    high = tl.load(source + high_at, mask=live, other=0.0).to(tl.float32)
    angle = row * DIM
    low_cos = tl.load(cos + angle + low_at, mask=live, other=0.0).to(tl.float32)
    high_cos = tl.load(cos + angle + high_at, mask=live, other=0.0).to(tl.float32)
    low_sin = tl.load(sin + angle + low_at, mask=live, other=0.0).to(tl.float32)
    high_sin = tl.load(sin + angle + high_at, mask=live, other=0.0).to(tl.float32)
    new_low = (low * low_cos).to(kind).to(tl.float32) - (high * low_sin).to(kind).to(tl.float32)
    new_high = (high * high_cos).to(kind).to(tl.float32) + (low * high_sin).to(kind).to(tl.float32)
    if head < HEADS:
        target = q + (row * HEADS + head) * DIM
        tl.store(target + low_at, new_low.to(kind), mask=live)
        tl.store(target + high_at, new_high.to(kind), mask=live)
    else:
        place = (tl.load(slots + row).to(tl.int64) * KV_HEADS + head - HEADS) * DIM
        tl.store(k_cache + place + low_at, new_low.to(kind), mask=live)
        tl.store(k_cache + place + high_at, new_high.to(kind), mask=live)
        values = source + KV_HEADS * DIM
        tl.store(v_cache + place + low_at, tl.load(values + low_at, mask=live), mask=live)
        tl.store(v_cache + place + high_at, tl.load(values + high_at, mask=live), mask=live)


@triton.jit
def silu_times_rows(
    out,  # [rows, INNER]
    gate_up,  # [rows, 2 * INNER]
    row_stride,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One strip of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < INNER
    source = gate_up + row * row_stride
    gate = tl.load(source + at, mask=live, other=0.0).to(tl.float32)
    up = tl.load(source + INNER + at, mask=live, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    gated = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out + row * INNER + at, (gated * up).to(kind), mask=live)

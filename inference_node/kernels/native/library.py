"""The compiled kernels as functions over tensors.

Calls keep the interpreter lock: they take microseconds, and a thread that lets go of the lock may
wait milliseconds to have it back. Those of `nf4.h` and `layer.h` let go of it when there are many
rows; that of `model.h` always does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from inference_node.kernels.lora.contract import PAGE_RANKS, GroupPool, RowPages
from inference_node.kernels.native.build import build
from inference_node.kernels.native.large_pages import LargePages
from inference_node.kernels.native.structures import Product, Routing
from inference_node.kernels.paged_attention.contract import AttentionPlan

MAX_HEAD_DIM = 256
MAX_GROUP_DIM = 8192
"""Query heads of one key head times head_dim: MAX_GROUP_DIM of kernels.c."""

_PTR, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
_SIGNATURES: dict[str, list[type]] = {
    "lora_shrink": [_PTR, _PTR, _INT, _PTR, *[_INT] * 3, _PTR],
    "lora_expand_add": [_PTR, _INT, _PTR, _PTR, _INT, _INT, _PTR, _PTR],
    "likeliest": [*[_PTR] * 2, *[_INT] * 2],
    "decode_attention": [*[_PTR] * 4, *[_INT] * 5, _PTR, _INT, _PTR, _FLOAT, _PTR, _INT],
}
_PRODUCT_SIGNATURES: dict[str, list[type]] = {
    "nf4_linear": [_PTR, _INT, _PTR, _PTR],
    "dense_linear": [*[_PTR] * 3, *[_INT] * 3],
    "layer_before_attention": [_PTR] * 4,
    "layer_after_attention": [_PTR] * 5,
}
FEW_ROWS = 64
"""Calls over up to this many rows take about a millisecond and keep the interpreter lock."""


def load(folder: Path) -> Library:
    """The kernels, compiled into `folder` if they are not there yet. Raises NoCompiler."""
    return Library(build(folder))


class Library:
    """One loaded shared object. Every call checks shapes and types before it hands out pointers."""

    def __init__(self, path: Path) -> None:
        self._object = ctypes.PyDLL(str(path))
        self._calls: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
        for name, arguments in _SIGNATURES.items():
            for dtype, suffix in _SUFFIXES.items():
                call = getattr(self._object, f"{name}_{suffix}")
                call.argtypes, call.restype = arguments, None
                self._calls[name, dtype] = call
        self.multiplies_nf4 = hasattr(self._object, "nf4_linear")
        """Whether what needs AVX512-BF16 exists: `nf4.h`, `dense.h`, `layer.h`, `model.h`."""
        self._product_calls: dict[tuple[str, bool], Callable[..., None]] = {}
        letting_go = ctypes.CDLL(str(path))
        for few, handle in ((True, self._object), (False, letting_go)):
            for name, arguments in _PRODUCT_SIGNATURES.items() if self.multiplies_nf4 else ():
                call = getattr(handle, name)
                call.argtypes, call.restype = arguments, None
                self._product_calls[name, few] = call
        if self.multiplies_nf4:
            letting_go.model_forward.argtypes = [_PTR] * 3
            self.model_forward: Callable[..., int] = letting_go.model_forward
            """A whole step: milliseconds, in which other threads of the interpreter go on."""
        self._scratch = torch.empty(0)
        self.keep = LargePages().keep
        """A copy of a tensor that steps read from end to end."""

    def layer_call(self, name: str, *, rows: int) -> Callable[..., None]:
        """A function of `layer.h` that runs part of a layer; layers.py says what it takes."""
        return self._product_calls[name, rows <= FEW_ROWS]

    def attention_scratch(self, heads: int, *, places: int) -> tuple[int, int]:
        """Where attention over up to `places` keys keeps its weights until the next call of this.

        The address of [threads, heads, tokens] float32, and tokens: `places` in whole sixteens.
        """
        tokens = -(-places // 16) * 16
        needed = torch.get_num_threads() * heads * tokens
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed * 2)
        return self._scratch.data_ptr(), tokens

    def nf4_linear(self, product: Product, x: torch.Tensor, y: torch.Tensor) -> None:
        """y [rows, out] = x [rows, in] times the product's weight, and its bias. bfloat16."""
        for rows, width in ((x, product.in_features), (y, product.out_features)):
            _check_row_major(rows, width, torch.bfloat16)
            if not rows.is_contiguous():
                raise ValueError("rows must be contiguous")
        count = x.shape[0]
        self._product_calls["nf4_linear", count <= FEW_ROWS](
            ctypes.byref(product), count, x.data_ptr(), y.data_ptr()
        )

    def shrink_rows(
        self, x: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> torch.Tensor:
        """`lora.reference.shrink_rows`."""
        a, shape, count = pool.a, pool.shape, rows.row.shape[0]
        _check_row_major(x, shape.in_features, a.dtype)
        h = torch.empty(count, shape.slices, PAGE_RANKS, dtype=torch.float32)
        self._calls["lora_shrink", x.dtype](
            h.data_ptr(),
            x.data_ptr(),
            x.stride(0),
            a.data_ptr() + layer * a.stride(1) * a.element_size(),
            a.stride(0),
            shape.slices,
            shape.in_features,
            ctypes.byref(Routing.of(rows)),
        )
        return h

    def expand_add_rows(
        self, y: torch.Tensor, h: torch.Tensor, pool: GroupPool, layer: int, rows: RowPages
    ) -> None:
        """`lora.reference.expand_add_rows`."""
        b, shape = pool.b, pool.shape
        _check_row_major(y, shape.out_total, b.dtype)
        if h.shape != (rows.row.shape[0], shape.slices, PAGE_RANKS):
            raise ValueError(f"h is {tuple(h.shape)} for {rows.row.shape[0]} pairs of {shape}")
        self._calls["lora_expand_add", y.dtype](
            y.data_ptr(),
            y.stride(0),
            h.data_ptr(),
            b.data_ptr() + layer * b.stride(1) * b.element_size(),
            b.stride(0),
            shape.slices,
            (ctypes.c_int64 * shape.slices)(*shape.out_features),
            ctypes.byref(Routing.of(rows)),
        )

    def dense_linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x [rows, in] times the [out, in] of which weight is `in_panels`. bfloat16."""
        _check_panels(weight)
        width, out = 2 * weight.shape[1], 16 * weight.shape[0]
        _check_row_major(x, width, torch.bfloat16)
        if not x.is_contiguous():
            raise ValueError("rows must be contiguous")
        rows = x.shape[0]
        y = x.new_empty(rows, out)
        self._product_calls["dense_linear", rows <= FEW_ROWS](
            y.data_ptr(), x.data_ptr(), weight.data_ptr(), rows, out, width
        )
        return y

    def likeliest(self, logits: torch.Tensor) -> torch.Tensor:
        """`greedy.likeliest`."""
        rows, width = logits.shape
        _check_row_major(logits, width, logits.dtype)
        if not logits.is_contiguous():
            raise ValueError("rows must be contiguous")
        best = torch.empty(rows, dtype=torch.int64)
        self._calls["likeliest", logits.dtype](best.data_ptr(), logits.data_ptr(), rows, width)
        return best

    def decode_attention(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        """`paged_attention.reference.decode_attention`."""
        rows, heads, dim = q.shape
        _, block_tokens, kv_heads, _ = k_cache.shape
        q, blocks = q.contiguous(), plan.decode_blocks
        if dim > MAX_HEAD_DIM or heads // kv_heads * dim > MAX_GROUP_DIM:
            raise ValueError(f"{heads} heads of {dim} over {kv_heads} are more than fit")
        if not q.dtype == k_cache.dtype == v_cache.dtype:
            raise ValueError(f"dtypes differ: {q.dtype}, {k_cache.dtype}, {v_cache.dtype}")
        if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
            raise ValueError("the caches must be contiguous")
        out = torch.empty_like(q)
        group = heads // kv_heads
        weights, tokens = self.attention_scratch(heads, places=blocks.shape[1] * block_tokens)
        self._calls["decode_attention", q.dtype](
            out.data_ptr(),
            q.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            rows,
            kv_heads,
            group,
            dim,
            block_tokens,
            blocks.data_ptr(),
            blocks.shape[1],
            plan.decode_contexts.data_ptr(),
            scale,
            weights,
            tokens,
        )
        return out


def in_panels(weight: torch.Tensor) -> torch.Tensor:
    """weight [out, in] as `dense.h` reads it: [out / 16, in / 2, 16, 2], out in 16s, in in 2s."""
    out, width = weight.shape
    return weight.view(out // 16, 16, width // 2, 2).transpose(1, 2).contiguous()


def _check_panels(weight: torch.Tensor) -> None:
    """Raises ValueError when it is not `in_panels` of bfloat16."""
    shape = tuple(weight.shape)
    panels = len(shape) == 4 and shape[2:] == (16, 2) and weight.is_contiguous()
    if not panels or weight.dtype != torch.bfloat16:
        raise ValueError(f"expected bfloat16 in panels, got {weight.dtype} {shape}")


def _check_row_major(rows: torch.Tensor, width: int, dtype: torch.dtype) -> None:
    if rows.ndim != 2 or rows.shape[1] != width or rows.stride(1) != 1:
        raise ValueError(f"rows are {tuple(rows.shape)}, expected [rows, {width}] row by row")
    if rows.dtype != dtype or dtype not in _SUFFIXES:
        raise ValueError(f"dtypes differ or are not supported: {rows.dtype}, {dtype}")

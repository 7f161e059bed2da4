"""The compiled kernels as functions over tensors.

Calls keep the interpreter lock: they take microseconds, and a thread that lets go of the lock may
wait milliseconds to have it back. Those of `layer.h` let go of it when a step has many rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from inference_node.kernels.lora.contract import PAGE_RANKS, GroupPool, RowPages
from inference_node.kernels.native.build import build
from inference_node.kernels.paged_attention.contract import AttentionPlan

MAX_HEAD_DIM = 256
MAX_GROUP_DIM = 8192
"""Query heads of one key head times head_dim: MAX_GROUP_DIM of kernels.c."""

_PTR, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
_SIGNATURES: dict[str, list[type]] = {
    "lora_shrink": [_PTR, _PTR, _INT, _PTR, *[_INT] * 4, *[_PTR] * 5],
    "lora_expand_add": [_PTR, _INT, _PTR, _PTR, _INT, _INT, _PTR, _INT, *[_PTR] * 4],
    "decode_attention": [*[_PTR] * 4, *[_INT] * 5, _PTR, _INT, _PTR, _FLOAT, _PTR, _INT],
}
_LAYER_SIGNATURES: dict[str, list[type]] = {
    "layer_before_attention": [_PTR] * 4,
    "layer_after_attention": [_PTR] * 5,
}


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
        self._layer_calls: dict[tuple[str, bool], Callable[..., None]] = {}
        for keeps_lock, handle in ((True, self._object), (False, ctypes.CDLL(str(path)))):
            for name, arguments in _LAYER_SIGNATURES.items():
                call = getattr(handle, name)
                call.argtypes, call.restype = arguments, None
                self._layer_calls[name, keeps_lock] = call
        self._scratch = torch.empty(0)

    def layer_call(self, name: str, *, keeps_lock: bool) -> Callable[..., None]:
        """A function of `layer.h`; layers.py says what it takes."""
        return self._layer_calls[name, keeps_lock]

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
            rows.tile.shape[0] - 1,
            rows.tile.data_ptr(),
            rows.first.data_ptr(),
            rows.row.data_ptr(),
            rows.page.data_ptr(),
            rows.scale.data_ptr(),
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
            rows.tile.shape[0] - 1,
            rows.tile.data_ptr(),
            rows.first.data_ptr(),
            rows.row.data_ptr(),
            rows.page.data_ptr(),
        )

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
        group, tokens = heads // kv_heads, blocks.shape[1] * block_tokens
        needed = torch.get_num_threads() * group * tokens
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed * 2)
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
            self._scratch.data_ptr(),
            tokens,
        )
        return out


def _check_row_major(rows: torch.Tensor, width: int, dtype: torch.dtype) -> None:
    if rows.ndim != 2 or rows.shape[1] != width or rows.stride(1) != 1:
        raise ValueError(f"rows are {tuple(rows.shape)}, expected [rows, {width}] row by row")
    if rows.dtype != dtype or dtype not in _SUFFIXES:
        raise ValueError(f"dtypes differ or are not supported: {rows.dtype}, {dtype}")

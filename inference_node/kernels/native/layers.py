"""The structures of `layer.h`, filled from tensors: a model's decoder layers, and one step.

Every shape, type and stride is checked where a layer or a step is described, so that the calls
themselves hand over nothing but pointers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from inference_node.kernels.lora.contract import PAGE_RANKS, GroupPool, LoraPlan
from inference_node.kernels.native.library import MAX_GROUP_DIM, MAX_HEAD_DIM, Library
from inference_node.kernels.native.structures import (
    GROUPS,
    INT,
    PARTS,
    PTR,
    Group,
    Layer,
    Product,
    Routing,
    Step,
)
from inference_node.kernels.paged_attention.contract import AttentionPlan


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The tensors of one layer. Siblings are stacked: q over k over v, gate over up.

    What the products point to must outlive them.
    """

    products: tuple[Product, Product, Product, Product]
    """qkv, o, gate_up, down."""
    norms: tuple[torch.Tensor, torch.Tensor]  # [hidden] bfloat16: before attention, after it
    eps: float
    heads: int
    head_dim: int
    scale: float | None
    """Of attention's scores; None when attention is another than softmax over all of a context."""


class DecoderLayers:
    """All layers of one model over fixed caches and pools; used by one thread."""

    def __init__(
        self,
        library: Library,
        layers: Sequence[DecoderLayer],
        k_caches: Sequence[torch.Tensor],
        v_caches: Sequence[torch.Tensor],
        pools: Sequence[GroupPool],
    ) -> None:
        """k and v caches one a layer.

        caches [blocks, block_tokens, kv_heads, head_dim]; pools in the order of the products.
        Raises ValueError when sizes or types do not fit together.
        """
        first = layers[0]
        self.heads, self.head_dim = first.heads, first.head_dim
        self.hidden = first.products[0].in_features
        self._library = library
        self._kept = (tuple(layers), tuple(k_caches), tuple(v_caches), tuple(pools))
        self._outs = [(INT * pool.shape.slices)(*pool.shape.out_features) for pool in pools]
        self.structures = (Layer * len(layers))(
            *(
                self._layer(index, layer, k, v)
                for index, (layer, k, v) in enumerate(zip(layers, k_caches, v_caches, strict=True))
            )
        )
        group_dim = self.heads * self.head_dim // k_caches[0].shape[2]
        self._attends = (
            all(layer.scale is not None for layer in layers)
            and self.head_dim <= MAX_HEAD_DIM
            and group_dim <= MAX_GROUP_DIM
        )
        self._wide = max(first.products[0].out_features, first.products[2].out_features)
        self._narrow = max(self.hidden, first.products[3].in_features)
        self._slices = max(pool.shape.slices for pool in pools)
        self.step = Step(block_tokens=k_caches[0].shape[1])
        self.attention: AttentionPlan | None = None
        """Of the running step, which points into it."""
        self._lora: LoraPlan | None = None
        """The same."""
        self._timed: object = None
        self._routed = False
        """Whether the step says which rows read which pages."""
        self._shared = 0
        """Rows that the scratch is laid out for."""
        self._scratch = torch.empty(0, dtype=torch.bfloat16)
        self._h = torch.empty(0)

    def begin(self, lora: LoraPlan | None, attention: AttentionPlan) -> None:
        """Describe the step whose layers run next."""
        step = self.step
        if attention is not self.attention:
            self._describe(attention)
        self.attention, self._lora = attention, lora
        rows = step.rows
        step.cos = step.sin = step.position = None
        if lora is None and not self._routed:
            return
        self._routed = lora is not None
        pairs = 0
        for index, name in enumerate(GROUPS):
            plan = lora.groups[index] if lora is not None else None
            if plan is not None and (plan.blocks or plan.rows != rows):
                raise ValueError("the plan is not one of rows that read their pages in place")
            single = plan.single if plan is not None else None
            setattr(step, name, Routing.of(single))
            pairs = max(pairs, 0 if single is None else single.row.shape[0])
        if self._h.numel() < pairs * self._slices * PAGE_RANKS:
            self._h = torch.empty(pairs * self._slices * PAGE_RANKS)
        step.h = self._h.data_ptr()

    def _describe(self, attention: AttentionPlan) -> None:
        step, rows = self.step, attention.slots.shape[0]
        step.rows = rows
        step.slots = attention.slots.data_ptr()
        step.table, step.context = (
            attention.decode_blocks.data_ptr(),
            attention.decode_contexts.data_ptr(),
        )
        step.attended, step.table_width = attention.decode_blocks.shape
        if rows != self._shared:
            self._share_scratch(rows)

    @property
    def whole(self) -> bool:
        """Whether every row of the step is attended here, with a context of its own."""
        return self._attends and self.step.attended == self.step.rows

    def time_parts(self) -> Callable[[], dict[str, float]]:
        """From now on steps are timed; the seconds that each of PARTS took since this call.

        Those of the thread that calls, waiting for the others at the end of each part included.
        """
        spent = (ctypes.c_double * len(PARTS))()
        self._timed, self.step.spent = spent, ctypes.addressof(spent)
        return lambda: dict(zip(PARTS, spent, strict=True))

    def before_attention(
        self, layer: int, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """q [rows, heads, head_dim] of x [rows, hidden]; keys and values go to the cache.

        cos, sin [rows, head_dim]. Raises ValueError on another shape or type.
        """
        rows = self.step.rows
        check(x, (rows, self.hidden))
        for angles in (cos, sin):
            check(angles, (rows, self.head_dim))
        self.step.cos, self.step.sin = cos.data_ptr(), sin.data_ptr()
        q = x.new_empty(rows, self.heads, self.head_dim)
        self._library.layer_call("layer_before_attention", rows=rows)(
            ctypes.byref(self.structures[layer]),
            ctypes.byref(self.step),
            x.data_ptr(),
            q.data_ptr(),
        )
        return q

    def after_attention(self, layer: int, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output [rows, hidden], from its input and attention's output."""
        rows = self.step.rows
        check(x, (rows, self.hidden))
        check(attended, (rows, self.heads, self.head_dim))
        y = torch.empty_like(x)
        self._library.layer_call("layer_after_attention", rows=rows)(
            ctypes.byref(self.structures[layer]),
            ctypes.byref(self.step),
            x.data_ptr(),
            attended.data_ptr(),
            y.data_ptr(),
        )
        return y

    def _share_scratch(self, rows: int) -> None:
        attended = self.heads * self.head_dim
        widths = {
            "wide": self._wide,
            "narrow": self._narrow,
            "q": attended,
            "attention": attended,
            "first": self.hidden,
            "second": self.hidden,
            "third": self.hidden,
        }
        self._shared = rows
        needed = rows * sum(widths.values())
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.bfloat16)
        at = self._scratch.data_ptr()
        for name, width in widths.items():
            setattr(self.step, name, at)
            at += rows * width * self._scratch.element_size()

    def _layer(self, index: int, layer: DecoderLayer, k: torch.Tensor, v: torch.Tensor) -> Layer:
        kv_heads, dim = k.shape[2:]
        inner = layer.products[3].in_features
        for cache in (k, v):
            check(cache, (*k.shape[:2], kv_heads, layer.head_dim))
        for norm in layer.norms:
            check(norm, (self.hidden,))
        wanted = (
            (self.hidden, (self.heads + 2 * kv_heads) * dim),
            (self.heads * dim, self.hidden),
            (self.hidden, 2 * inner),
            (inner, self.hidden),
        )
        found = tuple((each.in_features, each.out_features) for each in layer.products)
        if found != wanted or layer.heads != self.heads or dim % 2 or inner % 16:
            raise ValueError(f"products {found} of a layer that needs {wanted}")
        pools = self._kept[3]
        groups = {
            name: _group(product, pool, outs, index)
            for name, product, pool, outs in zip(
                GROUPS, layer.products, pools, self._outs, strict=True
            )
        }
        return Layer(
            **groups,
            norm_before=layer.norms[0].data_ptr(),
            norm_after=layer.norms[1].data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=kv_heads,
            dim=dim,
            inner=inner,
            eps=layer.eps,
            scale=layer.scale or 0.0,
        )


def _group(product: Product, pool: GroupPool, outs: object, layer: int) -> Group:
    shape = pool.shape
    if (shape.in_features, shape.out_total) != (product.in_features, product.out_features):
        raise ValueError(f"adapter pages of {shape} beside a product of another size")
    for tensor in (pool.a, pool.b):
        check(tensor, tuple(tensor.shape))
    size = pool.a.element_size()
    return Group(
        product=product,
        a=pool.a.data_ptr() + layer * pool.a.stride(1) * size,
        b=pool.b.data_ptr() + layer * pool.b.stride(1) * size,
        a_stride=pool.a.stride(0),
        b_stride=pool.b.stride(0),
        slices=shape.slices,
        outs=ctypes.cast(outs, PTR),  # type: ignore[arg-type]
    )


def check(tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError for another shape or type, or what lies apart."""
    if tensor.shape != shape or tensor.dtype != torch.bfloat16 or not tensor.is_contiguous():
        raise ValueError(
            f"expected contiguous bfloat16 {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
        )

"""The structures of the C kernels, field by field in their order."""

from __future__ import annotations

import ctypes

from inference_node.kernels.lora.contract import RowPages

PTR, INT = ctypes.c_void_p, ctypes.c_int64
GROUPS = ("qkv", "o", "gate_up", "down")
PARTS = ("base_linears", "lora", "attention", "lm_head")
"""What the time of a step is told apart by; norms, angles and activations are none."""


class Routing(ctypes.Structure):
    """Which rows read which pages; empty: none does. Points into the tensors it was made of."""

    _fields_ = [
        ("tiles", INT),
        *((name, PTR) for name in ("tile", "first", "row", "page", "scale")),
    ]

    @classmethod
    def of(cls, rows: RowPages | None) -> Routing:
        if rows is None:
            return cls()
        return cls(
            rows.tile.shape[0] - 1,
            rows.tile.data_ptr(),
            rows.first.data_ptr(),
            rows.row.data_ptr(),
            rows.page.data_ptr(),
            rows.scale.data_ptr(),
        )


class Product(ctypes.Structure):
    """A 4-bit product; `quant4/native.py` packs what it points to."""

    in_features: int
    out_features: int
    _fields_ = [
        *((name, PTR) for name in ("weight", "scale", "bias")),
        ("in_features", INT),
        ("out_features", INT),
    ]


class Group(ctypes.Structure):
    _fields_ = [
        ("product", Product),
        *((name, PTR) for name in ("a", "b")),
        *((name, INT) for name in ("a_stride", "b_stride", "slices")),
        ("outs", PTR),
    ]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, Group) for name in GROUPS),
        *((name, PTR) for name in ("norm_before", "norm_after", "k", "v")),
        *((name, INT) for name in ("hidden", "heads", "kv_heads", "dim", "inner")),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        ("rows", INT),
        *((name, Routing) for name in GROUPS),
        *((name, PTR) for name in ("cos", "sin", "position")),
        ("places", INT),
        *((name, PTR) for name in ("slots", "table", "context")),
        *((name, INT) for name in ("attended", "table_width", "block_tokens")),
        *((name, PTR) for name in ("wide", "narrow", "q", "attention")),
        *((name, PTR) for name in ("first", "second", "third", "weights")),
        ("weight_tokens", INT),
        *((name, PTR) for name in ("h", "spent")),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("count", INT),
        ("vocabulary", INT),
        *((name, PTR) for name in ("embedding", "head", "norm")),
        ("eps", ctypes.c_float),
    ]


class Ends(ctypes.Structure):
    _fields_ = [
        *((name, PTR) for name in ("tokens", "wanted")),
        ("sampled", INT),
        *((name, PTR) for name in ("logits", "best")),
    ]

"""A good adapter for the tiny Llama of the tests, and the tools to spoil it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from adapter_store.lora_config import CONFIG_FILE
from adapter_store.record import BaseCard
from adapter_store.tensor_file import WEIGHTS_FILE
from tests.adapter_store.adapter_files import config, header_of, pack, pack_header

RANK = 4
HIDDEN, KEYS, INNER = 64, 32, 128
_SIZES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
CARD = BaseCard(
    fingerprint="ba5e" * 16,
    name="tiny",
    architecture="LlamaForCausalLM",
    modules={
        f"model.layers.{layer}.{leaf}": size for layer in (0, 1) for leaf, size in _SIZES.items()
    },
)
Arrays = dict[str, np.ndarray]
HEAD = "base_model.model.model.layers.0.self_attn."
FIRST = f"{HEAD}q_proj.lora_A.weight"
FIRST_B = f"{HEAD}q_proj.lora_B.weight"


def arrays(
    *, rank: int = RANK, leaves: tuple[str, ...] = ("q_proj", "v_proj"), seed: int = 0
) -> Arrays:
    """Factors that change every answer."""
    random = np.random.default_rng(seed)
    found = {}
    for module, (out, width) in CARD.modules.items():
        if module.rsplit(".", 1)[-1] in leaves:
            for factor, shape in (("lora_A", (rank, width)), ("lora_B", (out, rank))):
                name = f"base_model.model.{module}.{factor}.weight"
                found[name] = (random.standard_normal(shape) * 0.3).astype(np.float32)
    return found


@cache
def good_weights() -> bytes:
    return pack(arrays())


@cache
def good_config() -> bytes:
    return json.dumps(config()).encode()


def good_folder(folder: Path) -> Path:
    """An adapter folder as peft leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_bytes(good_config())
    (folder / WEIGHTS_FILE).write_bytes(good_weights())
    return folder


def weights(body: bytes) -> Callable[[Path], object]:
    """Spoils a folder by these weights."""
    return lambda folder: (folder / WEIGHTS_FILE).write_bytes(body)


def config_body(body: bytes) -> Callable[[Path], object]:
    """Spoils a folder by this config."""
    return lambda folder: (folder / CONFIG_FILE).write_bytes(body)


def config_with(**changes: Any) -> Callable[[Path], object]:
    """Spoils a folder by changes of its config."""
    return config_body(json.dumps(config(**changes)).encode())


def header(edit: Callable[[dict[str, Any]], object], *, data: bytes | None = None) -> bytes:
    """The good file with its header edited, or with other `data` behind it."""
    good = arrays()
    edited = header_of(good)
    edit(edited)
    body = b"".join(array.tobytes() for array in good.values())
    return pack_header(edited, body if data is None else data)


def first(**fields: Any) -> bytes:
    """The good file with fields of its first tensor's entry changed."""
    return header(lambda entries: entries[FIRST].update(fields))


def raw_header(text: bytes, *, data: bytes = b"") -> bytes:
    return pack_header(text, data)


def entry(text: str) -> bytes:
    """A file of one float32 number whose only entry is this text."""
    return pack_header(b'{"a":' + text.encode() + b"}", b"\0" * 4)


def with_arrays(edit: Callable[[Arrays], object], **options: Any) -> bytes:
    """The good file with its tensors edited in place."""
    good = arrays(**options)
    edit(good)
    return pack(good)


def with_value(value: float, *, name: str = FIRST) -> bytes:
    def put(good: Arrays) -> None:
        good[name][0, 0] = value

    return with_arrays(put)


def as_type(dtype: Any, bits: int) -> bytes:
    """The good file in another type, the very last number being this bit pattern."""
    good = arrays()
    if dtype is np.uint16:
        made = {
            name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in good.items()
        }
    else:
        made = {name: array.astype(dtype) for name, array in good.items()}
    last = list(made)[-1]
    unsigned = made[last].view(f"<u{made[last].itemsize}")
    unsigned[-1, -1] = bits
    return pack(made)

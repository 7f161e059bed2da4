"""Well-formed weights that cannot be served: what is wrong, and how it is refused."""

from __future__ import annotations

import numpy as np

from adapter_store.errors import Incompatible, InvalidAdapter, StoreError
from tests.adapter_store.adapter_files import pack
from tests.chaos.bad_inputs.case import BadInput, bad_folder
from tests.chaos.bad_inputs.material import (
    FIRST,
    FIRST_B,
    HEAD,
    Arrays,
    arrays,
    as_type,
    config_with,
    first,
    header,
    weights,
    with_arrays,
    with_value,
)

NAN, INF = float("nan"), float("inf")


def _scaled(good: Arrays, part: str, by: float) -> None:
    for name in good:
        if part in name:
            good[name] = good[name] * np.float32(by)


def _swap(good: Arrays) -> None:
    good[FIRST], good[FIRST_B] = good[FIRST_B], good[FIRST]


def _renamed(old: str, new: str) -> bytes:
    return pack({name.replace(old, new): array for name, array in arrays().items()})


def _plus(name: str) -> bytes:
    return with_arrays(lambda good: good.update({name: np.ones((1, 1), np.float32)}))


def _put(name: str, shape: tuple[int, int]) -> bytes:
    return with_arrays(lambda good: good.update({name: np.ones(shape, np.float32)}))


SAME = "first base_model.model"
WEIGHTS: tuple[tuple[str, bytes, type[StoreError], str], ...] = (
    ("float32 NaN", with_value(NAN), InvalidAdapter, "NaN or infinite"),
    ("float32 infinity", with_value(INF), InvalidAdapter, "NaN or infinite"),
    ("float32 minus infinity", with_value(-INF), InvalidAdapter, "NaN or infinite"),
    ("float32 signalling NaN, last", as_type(np.float32, 0x7F80_0001), InvalidAdapter, "NaN"),
    ("float16 NaN, last", as_type(np.float16, 0x7E00), InvalidAdapter, "NaN or infinite"),
    ("float16 infinity, last", as_type(np.float16, 0x7C00), InvalidAdapter, "NaN or infinite"),
    ("float16 minus infinity, last", as_type(np.float16, 0xFC00), InvalidAdapter, "NaN"),
    ("bfloat16 NaN, last", as_type(np.uint16, 0x7FC0), InvalidAdapter, "NaN or infinite"),
    ("bfloat16 minus infinity, last", as_type(np.uint16, 0xFF80), InvalidAdapter, "NaN"),
    ("a value over float16", with_value(65_505.0), InvalidAdapter, "over the limit of 65504"),
    ("a value of 1e30", with_value(-1e30), InvalidAdapter, "over the limit"),
    ("over float16 once scaled", with_value(20_000.0, name=FIRST_B), InvalidAdapter, "over the"),
    ("B zero everywhere", with_arrays(lambda good: _scaled(good, "lora_B", 0.0)),
     InvalidAdapter, "does not change 4 of its 4"),
    ("A minus zero everywhere", with_arrays(lambda good: _scaled(good, "lora_A", -0.0)),
     InvalidAdapter, "does not change 4 of its 4"),
    ("products below float32", with_arrays(lambda good: _scaled(good, "lora_", 1e-20)),
     InvalidAdapter, "does not change 4 of its 4"),
    ("A of a module missing", with_arrays(lambda good: good.pop(FIRST)), Incompatible,
     "1 of 8 tensors are missing"),
    ("B of a module missing", with_arrays(lambda good: good.pop(FIRST_B)), Incompatible,
     "1 of 8 tensors are missing"),
    ("a whole module missing", with_arrays(lambda good: (good.pop(FIRST), good.pop(FIRST_B))),
     Incompatible, "2 of 8 tensors are missing"),
    ("a module nobody declared", pack(arrays(leaves=("q_proj", "k_proj", "v_proj"))),
     Incompatible, "4 tensors belong to no declared module"),
    ("a full output head", _plus("base_model.model.lm_head.weight"), Incompatible, "belong to no"),
    ("another rank than declared", pack(arrays(rank=8)), Incompatible, "is [8, 64], not [4, 64]"),
    ("B of another rank than A", _put(FIRST_B, (64, 8)), Incompatible, "is [64, 8], not [64, 4]"),
    ("a wrong input size", _put(FIRST, (4, 65)), Incompatible, "is [4, 65], not [4, 64]"),
    ("a wrong output size", _put(FIRST_B, (63, 4)), Incompatible, "is [63, 4], not [64, 4]"),
    ("A transposed", _put(FIRST, (64, 4)), Incompatible, "is [64, 4], not [4, 64]"),
    ("A and B swapped", with_arrays(_swap), Incompatible, "is [64, 4], not [4, 64]"),
    ("no dimension", first(shape=[]), InvalidAdapter, "no proper 2-D shape"),
    ("one dimension", first(shape=[256]), InvalidAdapter, "no proper 2-D shape"),
    ("three dimensions", first(shape=[4, 64, 1]), InvalidAdapter, "no proper 2-D shape"),
    ("a size of zero", first(shape=[0, 64], data_offsets=[0, 0]), InvalidAdapter, "no proper 2-D"),
    ("a negative size", first(shape=[-4, -64]), InvalidAdapter, "no proper 2-D shape"),
    ("a size that is a bool", first(shape=[True, 256]), InvalidAdapter, "no proper 2-D shape"),
    ("a size that is a float", first(shape=[4.0, 64]), InvalidAdapter, "no proper 2-D shape"),
    ("two types", first(dtype="F16", shape=[8, 64]), InvalidAdapter, "several types"),
    ("double precision", header(
        lambda entries: [e.update(dtype="F64") for e in entries.values()]),
     InvalidAdapter, "not of type F16"),
    ("no prefix", _renamed("base_model.model.", ""), Incompatible, SAME),
    ("the prefix once more", _renamed("base_model.model.", "base_model.model." * 2),
     Incompatible, SAME),
    ("an adapter's name in the keys", _renamed(".weight", ".default.weight"), Incompatible, SAME),
    ("other names for the factors", _renamed("lora_A", "lora_down"), Incompatible, SAME),
    ("upper case", _renamed("q_proj", "Q_PROJ"), Incompatible, SAME),
    ("a letter that looks alike", _renamed("q_proj", "q_\u0440roj"), Incompatible, SAME),
    ("layers the base has not", _renamed("layers.1", "layers.9"), Incompatible, SAME),
    ("another architecture", _renamed("self_attn", "attention"), Incompatible, SAME),
    ("a name that is a path", _plus("../../x"), Incompatible, "'../../x'"),
    ("an empty name", _plus(""), Incompatible, "1 tensors belong to no declared module"),
    ("a name of 500,000 letters", _plus("x" * 500_000), Incompatible, "belong to no declared"),
    ("a name with a zero byte", _plus(f"{HEAD}q_proj\0"), Incompatible, "belong to no declared"),
)  # fmt: skip

CONFIGS_AT_FAULT = (
    ("a module the base has not", {"target_modules": ["c_attn"]}, "no adaptable module"),
    ("part of a module's name", {"target_modules": ["proj"]}, "no adaptable module"),
    ("one layer of two declared", {"target_modules": ["0.self_attn.q_proj"]}, "belong to no"),
)

SEMANTICS: tuple[BadInput, ...] = (
    *(bad_folder("semantics", what, error, says, weights(body))
      for what, body, error, says in WEIGHTS),
    *(bad_folder("semantics", what, Incompatible, says, config_with(**changes))
      for what, changes, says in CONFIGS_AT_FAULT),
)  # fmt: skip

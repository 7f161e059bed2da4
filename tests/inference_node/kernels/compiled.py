"""Compiles the Triton programs for a card that is not here, as the engine would launch them.

`python -m tests.inference_node.kernels.compiled 90` runs the host code of the kernels over tensors
of an 8B model with the launches written down, compiles each for capability 9.0, and prints one line
of JSON a launch; `all` in front takes every module group, head size and type. Needs Triton, not
interpreting, and no device.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inference_node.kernels.lora import GroupPool, GroupShape, LoraPlan, SlotPages
from inference_node.kernels.lora import fused as lora
from inference_node.kernels.lora import programs as lora_programs
from inference_node.kernels.paged_attention import AttentionPlan, Chunk
from inference_node.kernels.paged_attention import fused as attention
from inference_node.kernels.paged_attention import programs as attention_programs
from inference_node.kernels.paged_attention.prefill import one_by_one
from inference_node.kernels.pointwise import fused as pointwise
from inference_node.kernels.pointwise import programs as pointwise_programs

CPU = torch.device("cpu")
GROUPS = (
    GroupShape(4096, (4096, 1024, 1024)),
    GroupShape(4096, (4096,)),
    GroupShape(4096, (14336, 14336)),
    GroupShape(14336, (4096,)),
)
HEADS = ((32, 8, 128), (8, 4, 256), (32, 8, 64))
"""Query heads, key heads, head size."""
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass
class Launches:
    """Stands where a program is, and writes down what it is launched with."""

    program: Any
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(0 < size < 65536 for size in grid[1:]), grid
        return lambda *args, **kwargs: self.seen.append((args, kwargs))


def recorded(module: ModuleType) -> list[Launches]:
    found = []
    for name, program in vars(module).items():
        if isinstance(program, triton.JITFunction):
            found.append(Launches(program))
            setattr(module, name, found[-1])
    return found


def run_lora(dtype: torch.dtype, groups: Sequence[GroupShape]) -> None:
    slots = [SlotPages(((1, 2),), 1.0, index) for index in range(2)]
    steps = ([(0, 1), (1, 1)], [(row, 1) for row in range(40)], [(0, 200), (200, 1)])
    for shape in groups:
        a = torch.empty(3, 2, *shape.a_page, dtype=dtype)
        pool = GroupPool(shape, a, torch.empty(3, 2, *shape.b_page, dtype=dtype))
        for step in steps:
            segments = [
                (first, count, slots[index % 2]) for index, (first, count) in enumerate(step)
            ]
            plan = LoraPlan.build(segments, groups=1, device=CPU, dtype=dtype, in_place=True)
            assert plan is not None
            assert plan.groups[0] is not None
            rows = plan.groups[0].single
            assert rows is not None
            kernels, count = lora.FusedRows(), plan.groups[0].rows
            x = torch.empty(count, shape.in_features, dtype=dtype)
            h = kernels.shrink_rows(x, pool, 1, rows)
            y = torch.empty(count, shape.out_total, dtype=dtype)
            kernels.expand_add_rows(y, h, pool, 1, rows)


def run_attention(dtype: torch.dtype, heads_of: Sequence[tuple[int, int, int]]) -> None:
    kernels = attention.FusedAttention(one_by_one)
    for heads, kv_heads, dim in heads_of:
        k, v = (torch.empty(70, 16, kv_heads, dim, dtype=dtype) for _ in "kv")
        for blocks in (8, 64):
            chunk = Chunk(tuple(range(1, blocks + 1)), blocks * 16 - 1, 1)
            plan = AttentionPlan.build([chunk], block_tokens=16, device=CPU)
            new = torch.empty(1, kv_heads, dim, dtype=dtype)
            kernels.write_kv(k, v, new, new, plan)
            q = torch.empty(1, heads, dim, dtype=dtype)
            kernels.attend(q, k, v, plan, scale=1.0)
            kernels.attend(q, k, v, plan.within(100), scale=1.0, softcap=50.0)


def run_pointwise(dtype: torch.dtype) -> None:
    kernels = pointwise.FusedPointwise()
    (heads, kv_heads, dim), inner = HEADS[0], GROUPS[3].in_features
    x, weight = torch.empty(2, 4096, dtype=dtype), torch.empty(4096, dtype=dtype)
    for delta in (None, torch.empty_like(x)):
        kernels.add_norm(x, delta, weight, 1e-5)
    k, v = (torch.empty(70, 16, kv_heads, dim, dtype=dtype) for _ in "kv")
    qkv, angles = torch.empty(2, (heads + 2 * kv_heads) * dim, dtype=dtype), x[:, :dim]
    kernels.rotate(qkv, angles, angles, k, v, torch.zeros(2, dtype=torch.int64))
    kernels.silu_times(torch.empty(2, 2 * inner, dtype=dtype))


def compiled(launches: Launches, capability: int) -> Iterator[dict[str, Any]]:
    """What came of each distinct launch."""
    names = launches.program.arg_names
    done = set()
    for args, kwargs in launches.seen:
        options = {key: kwargs[key] for key in ("num_warps", "num_stages") if key in kwargs}
        values = dict(zip(names, args, strict=False)) | {
            name: kwargs[name] for name in names if name in kwargs
        }
        signature, constants, attributes = {}, {}, {}
        for index, name in enumerate(names):
            value = values[name]
            constant = launches.program.params[index].is_constexpr
            signature[name] = "constexpr" if constant else _type(value)
            if constant:
                constants[index,] = value
            elif isinstance(value, torch.Tensor) or (
                isinstance(value, int) and value % 16 == 0 and name != "pairs"
            ):
                attributes[index,] = [["tt.divisibility", 16]]
        key = json.dumps([signature, sorted(map(str, constants.items())), str(attributes)])
        if key in done:
            continue
        done.add(key)
        source = ASTSource(launches.program, signature, constexprs=constants, attrs=attributes)
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        yield {
            "program": launches.program.__name__,
            "capability": capability,
            "dtype": "bfloat16" if "*bf16" in signature.values() else "float32",
            "sizes": {names[index]: value for (index,), value in constants.items()},
            "shared": kernel.metadata.shared,
            **_resources(kernel.asm["cubin"]),
            "bytes_at_once": _widths(kernel.asm["ptx"]),
        }


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert used is not None, said
    return {"registers": int(used[1]), "stack": int(used[2])}


def _widths(ptx: str) -> dict[str, int]:
    """How many loads from device memory take 16 bytes at once, and how many 2."""
    return {
        "16": len(re.findall(r"ld\.global(?:\.\w+)*\.v4\.b32|cp\.async\.cg", ptx)),
        "2": len(re.findall(r"ld\.global(?:\.\w+)*\.b16", ptx)),
    }


def main() -> None:
    *everything, capability = sys.argv[1:]
    modules = (lora_programs, attention_programs, pointwise_programs)
    programs = [launches for module in modules for launches in recorded(module)]
    run_lora(torch.bfloat16, GROUPS if everything else (GROUPS[0], GROUPS[3]))
    run_attention(torch.bfloat16, HEADS if everything else HEADS[:1])
    run_pointwise(torch.bfloat16)
    if everything:
        run_lora(torch.float32, GROUPS)
        run_attention(torch.float32, HEADS)
        run_pointwise(torch.float32)
    for launches in programs:
        for line in compiled(launches, int(capability)):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

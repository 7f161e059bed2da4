"""The rows about linears: bitsandbytes' modules, ours, and the weights written out.

Numbers are those of `marks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import Node, adapters, pools_of
from benchmarks.gpu.results import Figure
from inference_node.kernels.quant4 import Dispatch, GemmLinear, dense_linear, stacked

BUDGET = 4_600_000_000
"""Bytes of bfloat16 weights that the hybrid may keep: o, down and q|k|v of an 8B model."""


class ByModule(nn.Module):
    """What bitsandbytes' own modules give, one after the other."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


def linears_alone(
    node: Node, clock: Clock, dispatch: Callable[[list[GemmLinear]], Dispatch]
) -> Iterator[Figure]:
    """Rows 1, 1b and 2: all linears of a step, by each way to compute them."""
    products = node.products()
    ours = [GemmLinear(stacked(originals)) for _, originals in products]
    chosen = dispatch(ours)
    taken: dict[int, dict[str, float]] = {}
    sizes = [rows for rows in (1, 4, 8, 16, 32, 64) if rows <= max(node.size.rows)]

    def time(ways: dict[str, list[Any]]) -> None:
        for rows in sizes:
            inputs = {
                linear.in_features: torch.randn(rows, linear.in_features, device=node.device).to(
                    torch.bfloat16
                )
                for linear in ours
            }
            runs = {
                name: clock.captured(
                    lambda some=some, x=inputs: [
                        call(x[ours[index].in_features]) for index, call in enumerate(some)
                    ]
                )
                for name, some in ways.items()
            }
            with torch.inference_mode():
                taken.setdefault(rows, {}).update(clock.alternating(runs))

    modules = [node.by_module(originals) for _, originals in products]
    defaults = [lambda x, own=own: [each(x) for each in own] for own in modules]
    time({"modules": defaults, "packed": ours})
    dense = [dense_linear(stacked(own), dtype=torch.bfloat16) for _, own in products]
    time({"packed": ours, "dense": dense})
    del dense
    for linear in ours:
        linear.write_out(chosen)
    time({"hybrid": ours})
    floor = {"floor ms": node.milliseconds(node.linear_bytes)}
    for rows, seconds in taken.items():
        parts = {f"{name} ms": value * 1e3 for name, value in seconds.items()} | floor
        yield Figure("1", seconds["modules"] / seconds["packed"], rows, parts)
        yield Figure("1b", seconds["modules"] / seconds["hybrid"], rows)
        yield Figure("2", seconds["dense"] / seconds["packed"], rows)


def own_linears(
    node: Node, clock: Clock, dispatch: Callable[[list[GemmLinear]], Dispatch]
) -> Iterator[Figure]:
    """Row 10: steps by the chosen linears, and by bitsandbytes' own modules in the same engine."""
    every = [True] * len(node.modules.groups)
    most = min(64, max(node.size.rows))
    node.bind(pools_of(node.modules, [2 * most] * len(every), node.device))
    slots = adapters([16] * most, every)
    products = node.products()
    ours = [shared.base for shared, _ in products]
    chosen = dispatch([base for base in ours if isinstance(base, GemmLinear)])
    try:
        for base in ours:
            base.write_out(chosen)
        for rows in [rows for rows in node.size.rows if 1 < rows <= 64]:
            node.capture(rows)
            mine = node.replay(slots[:rows])
            for shared, originals in products:
                shared.base = ByModule(node.by_module(originals))
            node.forget()
            node.capture(rows)
            taken = clock.alternating({"ours": mine, "modules": node.replay(slots[:rows])})
            for (shared, _), base in zip(products, ours, strict=True):
                shared.base = base
            node.forget()
            parts = {f"{name} ms": value * 1e3 for name, value in taken.items()}
            parts |= {"floor ms": node.floor_ms(slots[:rows])}
            yield Figure("10", taken["modules"] / taken["ours"], rows, parts)
    finally:
        for (shared, _), base in zip(products, ours, strict=True):
            shared.base = base
            base.write_out(Dispatch({}))

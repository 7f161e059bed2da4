"""The rows of figures that need no second system; each a function that returns what it measured.

Numbers are those of the table in docs/decisions/0014-gpu-path.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import Node, adapter_bytes, adapters, pools_of
from benchmarks.gpu.results import Figure
from inference_node.kernels.lora import LoraPlan, SlotPages
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
) -> list[Figure]:
    """Rows 1, 1b and 2: all linears of a step, by each way to compute them."""
    products = node.products()
    ours = [GemmLinear(stacked(originals)) for _, originals in products]
    chosen = dispatch(ours)
    figures = []
    marks = {1: (0.97, 1.2), 8: (1.1, 2.0), 32: (1.0, 1.8), 64: (1.4, 2.5)}
    hybrid_marks = {8: (1.3, 1.8), 32: (1.3, 1.8), 64: (1.8, 2.8)}
    dense_marks = {1: (1.3, 1.8), 8: (0.75, 1.2), 32: (0.65, 1.0), 64: (0.65, 1.0)}
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
    for rows, seconds in taken.items():
        parts = {"rows": rows, **{name: value * 1e3 for name, value in seconds.items()}}
        packed, modules = seconds["packed"], seconds["modules"]
        must, stretch = marks.get(rows, (None, None))
        name = f"1 bitsandbytes' modules / ours, {rows} rows"
        figures.append(Figure(name, modules / packed, must, stretch))
        must, stretch = hybrid_marks.get(rows, (None, None))
        hybrid = modules / seconds["hybrid"]
        figures.append(Figure(f"1b modules / hybrid, {rows} rows", hybrid, must, stretch))
        must, stretch = dense_marks.get(rows, (None, None))
        figures.append(
            Figure(
                f"2 bfloat16 / ours, {rows} rows",
                seconds["dense"] / packed,
                must,
                stretch,
                parts=parts,
            )
        )
    return figures


def steps(node: Node, clock: Clock, bandwidth: float) -> list[Figure]:
    """Rows 4, 5 and 12: a captured step of the base, of one hot adapter, and of all distinct."""
    every = [True] * len(node.modules.groups)
    most = max(node.size.rows)
    node.bind(pools_of(node.modules, [2 * most] * len(every), node.device))
    slots = adapters([16] * most, every)
    hot_marks = {1: (1.30, 1.20), 32: (1.20, 1.10), 64: (1.20, 1.10)}
    distinct_marks = {8: (1.35, 1.25), 32: (1.60, 1.45), 64: (1.80, 1.60)}
    floor_marks = {1: (0.28, 0.40), 8: (0.28, 0.40), 32: (0.32, 0.45), 64: (0.35, 0.50)}
    floor_marks[128] = (0.42, 0.58)
    figures = []
    for rows in node.size.rows:
        node.capture(rows)
        kinds: dict[str, Sequence[SlotPages | None]] = {
            "base": [None] * rows,
            "hot": [slots[0]] * rows,
            "distinct": slots[:rows],
        }
        taken = clock.alternating({name: node.replay(kind) for name, kind in kinds.items()})
        for name, marks in (("hot", hot_marks), ("distinct", distinct_marks)):
            must, stretch = marks.get(rows, (None, None))
            number = "4 one hot adapter" if name == "hot" else "5 all distinct"
            figures.append(
                Figure(
                    f"{number} / base, {rows} rows",
                    taken[name] / taken["base"],
                    must,
                    stretch,
                    higher=False,
                    parts={"ms": taken[name] * 1e3, "base ms": taken["base"] * 1e3},
                )
            )
        floor = node.floor_bytes(kinds["distinct"])
        must, stretch = floor_marks.get(rows, (None, None))
        figures.append(
            Figure(
                f"12 byte floor / step, {rows} rows all distinct",
                floor / bandwidth / taken["distinct"],
                must,
                stretch,
                parts={
                    "step ms": taken["distinct"] * 1e3,
                    "floor ms": floor / bandwidth * 1e3,
                    "floor GB": floor / 1e9,
                    "base step ms": taken["base"] * 1e3,
                    "base floor ms": node.floor_bytes(kinds["base"]) / bandwidth * 1e3,
                    "copy GB/s": bandwidth / 1e9,
                    "tokens/s": rows / taken["distinct"],
                },
            )
        )
        node.forget()
    return figures


def graph_over_eager(node: Node, clock: Clock) -> list[Figure]:
    """Row 3: a base step launched operator by operator, and at once."""
    node.bind(pools_of(node.modules, [2] * len(node.modules.groups), node.device))
    marks = {1: (4.0, 6.0), 8: (3.0, 4.0), 32: (3.0, 4.0)}
    figures = []
    for rows in [rows for rows in node.size.rows if rows <= 32]:
        node.capture(rows)
        replay = node.replay([None] * rows)
        inputs = node.graphs.held(rows, lora=False).step.batch
        runs = {"graph": replay, "eager": lambda x=inputs: node.decoder.forward(x)}
        taken = clock.alternating(runs, wall=True)
        must, stretch = marks.get(rows, (None, None))
        figures.append(
            Figure(
                f"3 eager / graph, {rows} rows",
                taken["eager"] / taken["graph"],
                must,
                stretch,
                parts={f"{name} ms": value * 1e3 for name, value in taken.items()},
            )
        )
        node.forget()
    return figures


def lora_alone(node: Node, clock: Clock, bandwidth: float) -> list[Figure]:
    """Rows 6 and 7: the LoRA kernels of a whole step, at true ranks and padded to the largest."""
    rows, every = min(64, max(node.size.rows)), [True] * len(node.modules.groups)
    node.bind(pools_of(node.modules, [8 * rows] * len(every), node.device))
    mixed = [(8, 16, 32, 64)[row % 4] for row in range(rows)]
    kinds = {
        "r16": adapters([16] * rows, every),
        "mixed": adapters(mixed, every),
        "padded": adapters(mixed, every, pages=8),
    }
    runs = {name: clock.captured(_lora_step(node, slots)) for name, slots in kinds.items()}
    with torch.inference_mode():
        taken = clock.alternating(runs)
    moved = {name: adapter_bytes(node.modules, slots) for name, slots in kinds.items()}
    return [
        Figure(
            f"6 LoRA bytes / time / copy bandwidth, {rows} distinct r16",
            moved["r16"] / taken["r16"] / bandwidth,
            0.45,
            0.65,
            parts={"ms": taken["r16"] * 1e3, "GB": moved["r16"] / 1e9},
        ),
        Figure(
            "7 mixed ranks, paged / padded time",
            taken["mixed"] / taken["padded"],
            0.65,
            0.55,
            higher=False,
            parts={name: taken[name] * 1e3 for name in ("mixed", "padded")},
        ),
        Figure(
            "7 mixed ranks, paged / padded memory",
            moved["mixed"] / moved["padded"],
            0.50,
            0.47,
            higher=False,
        ),
    ]


def _lora_step(node: Node, slots: Sequence[SlotPages]) -> Callable[[], None]:
    """Every group of every layer, over inputs of the right widths."""
    plan = LoraPlan.build(
        [(row, 1, slot) for row, slot in enumerate(slots)],
        groups=len(node.modules.groups),
        device=node.device,
        dtype=torch.bfloat16,
        in_place=True,
    )
    assert plan is not None
    kernels = node.decoder.backend.rows
    assert kernels is not None
    pools = node.decoder.pools

    def tensor(width: int) -> torch.Tensor:
        return torch.randn(len(slots), width, device=node.device).to(torch.bfloat16)

    inputs = [tensor(pool.shape.in_features) for pool in pools]
    outputs = [tensor(pool.shape.out_total) for pool in pools]

    def run() -> None:
        for layer in range(node.modules.layers):
            for group, x, y, pool in zip(plan.groups, inputs, outputs, pools, strict=True):
                assert group is not None
                assert group.single is not None
                h = kernels.shrink_rows(x, pool, layer, group.single)
                kernels.expand_add_rows(y, h, pool, layer, group.single)

    return run


def own_linears(
    node: Node, clock: Clock, dispatch: Callable[[list[GemmLinear]], Dispatch]
) -> list[Figure]:
    """Row 10: steps by the chosen linears, and by bitsandbytes' own modules in the same engine."""
    every = [True] * len(node.modules.groups)
    most = min(64, max(node.size.rows))
    node.bind(pools_of(node.modules, [2 * most] * len(every), node.device))
    slots = adapters([16] * most, every)
    marks = {8: (1.1, 1.5), 32: (1.0, 1.5), 64: (1.3, 1.8)}
    products = node.products()
    ours = [shared.base for shared, _ in products]
    chosen = dispatch([base for base in ours if isinstance(base, GemmLinear)])
    figures = []
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
            must, stretch = marks.get(rows, (None, None))
            figures.append(
                Figure(
                    f"10 steps a second, ours / by modules, {rows} rows",
                    taken["modules"] / taken["ours"],
                    must,
                    stretch,
                    parts={f"{name} ms": value * 1e3 for name, value in taken.items()},
                )
            )
    finally:
        for (shared, _), base in zip(products, ours, strict=True):
            shared.base = base
            base.write_out(Dispatch({}))
    return figures


def promotion(node: Node, clock: Clock) -> list[Figure]:
    """Row 11: an adapter is copied to the device on a stream of its own, beside steps."""
    every = [True] * len(node.modules.groups)
    rows = min(32, max(node.size.rows))
    pools = pools_of(node.modules, [2 * rows + 2] * len(every), node.device)
    node.bind(pools)
    slots = adapters([16] * rows, every)
    node.capture(rows)
    replay = node.replay(slots)
    target = [2 * rows + 1, 2 * rows + 2]
    mirror = [
        (tensor[page], torch.empty_like(tensor[page], device="cpu", pin_memory=clock.cuda))
        for pool in pools
        for tensor in (pool.a, pool.b)
        for page in target
    ]
    for _, held in mirror:
        held.zero_()
    stream = torch.cuda.Stream() if clock.cuda else None

    def copy() -> None:
        for page, held in mirror:
            page.copy_(held, non_blocking=True)

    def beside() -> None:
        if stream is None:
            copy()
        else:
            with torch.cuda.stream(stream):
                copy()
        replay()

    taken = clock.alternating({"quiet": replay, "promoting": beside})
    alone = clock.alternating({"promote": copy})["promote"]
    size = sum(held.numel() * held.element_size() for _, held in mirror)
    rate = clock.host_bandwidth()
    return [
        Figure(
            f"11 step while an r16 adapter is promoted / quiet, {rows} rows",
            taken["promoting"] / taken["quiet"],
            1.10,
            1.03,
            higher=False,
            parts={f"{name} ms": value * 1e3 for name, value in taken.items()},
        ),
        Figure(
            "11 promote / (bytes / host-to-device rate)",
            alone / (size / rate),
            1.5,
            1.2,
            higher=False,
            parts={"ms": alone * 1e3, "MB": size / 1e6, "GB/s": rate / 1e9},
        ),
    ]


def idle_share(node: Node, clock: Clock) -> list[Figure]:
    """Row 13: how much of a steady decode the device waits, inputs made and tokens read."""
    every = [True] * len(node.modules.groups)
    rows = min(64, max(node.size.rows))
    node.bind(pools_of(node.modules, [2 * rows] * len(every), node.device))
    slots = adapters([16] * rows, every)
    node.capture(rows)
    run, step = node.replay(slots), node.step(slots)

    def whole() -> None:
        decoded = node.graphs.run(step)
        assert decoded is not None
        decoded.best.tolist()

    device = clock.alternating({"device": run})["device"]
    wall = clock.alternating({"wall": whole}, wall=True)["wall"]
    return [
        Figure(
            f"13 idle share of steady decode, {rows} rows",
            max(0.0, 1 - device / wall),
            0.10,
            0.03,
            higher=False,
            parts={"device ms": device * 1e3, "wall ms": wall * 1e3},
        )
    ]


def capacity(node: Node, clock: Clock) -> list[Figure]:
    """Attention-only r8 adapters resident by the thousand: a step over 5 of them, and over all."""
    rows, many = min(32, max(node.size.rows)), node.size.many
    groups = [".mlp." not in group.tails[0] for group in node.modules.groups]
    pages = [many if has else 1 for has in groups]
    node.bind(pools_of(node.modules, pages, node.device))
    slots = adapters([8] * many, groups)
    node.capture(rows)
    spread = [slots[row * many // rows] for row in range(rows)]
    few = [slots[row % min(5, many)] for row in range(rows)]
    taken = clock.alternating({"5": node.replay(few), "many": node.replay(spread)})
    size = sum(pool.a.numel() + pool.b.numel() for pool in node.decoder.pools) * 2
    return [
        Figure(
            f"steps a second with {many} resident / with 5, {rows} rows",
            taken["5"] / taken["many"],
            0.90,
            parts={"GB resident": size / 1e9, **{f"{k} ms": v * 1e3 for k, v in taken.items()}},
        )
    ]

"""The rows about decode steps and adapters; each yields its figures as it has them.

Numbers are those of `marks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import Node, adapter_bytes, adapters, pools_of
from benchmarks.gpu.results import Figure
from inference_node.kernels.lora import LoraPlan, SlotPages


def steps(node: Node, clock: Clock) -> Iterator[Figure]:
    """Rows 4, 5 and 12: a captured step of the base, of one hot adapter, and of all distinct."""
    every = [True] * len(node.modules.groups)
    most = max(node.size.rows)
    node.bind(pools_of(node.modules, [2 * most] * len(every), node.device))
    slots = adapters([16] * most, every)
    for rows in sorted(node.size.rows, key=lambda rows: (rows == 128, -rows)):
        node.capture(rows)
        kinds: dict[str, Sequence[SlotPages | None]] = {
            "base": [None] * rows,
            "hot": [slots[0]] * rows,
            "distinct": slots[:rows],
        }
        taken = clock.alternating({name: node.replay(kind) for name, kind in kinds.items()})
        parts = {f"{name} ms": seconds * 1e3 for name, seconds in taken.items()}
        parts |= {f"{name} floor ms": node.floor_ms(kind) for name, kind in kinds.items()}
        yield Figure("5", taken["distinct"] / taken["base"], rows, parts)
        yield Figure("4", taken["hot"] / taken["base"], rows)
        floor = node.floor_ms(kinds["distinct"]) / 1e3
        speed = {"copy GB/s": node.bandwidth / 1e9, "tokens/s": rows / taken["distinct"]}
        yield Figure("12", floor / taken["distinct"], rows, speed)
        node.forget()


def graph_over_eager(node: Node, clock: Clock) -> Iterator[Figure]:
    """Row 3: a base step launched operator by operator, and at once."""
    node.bind(pools_of(node.modules, [2] * len(node.modules.groups), node.device))
    for rows in [rows for rows in node.size.rows if rows <= 32]:
        node.capture(rows)
        replay = node.replay([None] * rows)
        inputs = node.graphs.held(rows, lora=False).step.batch
        runs = {"graph": replay, "eager": lambda x=inputs: node.decoder.forward(x)}
        taken = clock.alternating(runs, wall=True)
        parts = {f"{name} ms": value * 1e3 for name, value in taken.items()}
        parts |= {"floor ms": node.floor_ms([None] * rows)}
        yield Figure("3", taken["eager"] / taken["graph"], rows, parts)
        node.forget()


def layers(node: Node, clock: Clock) -> Iterator[Figure]:
    """What short layers win: a captured base step by transformers' own, and by them."""
    if not node.decoder.can_be_short:
        raise RuntimeError("the model's layers cannot be run in few launches")
    chosen = node.short
    try:
        for rows in node.size.rows:
            runs = {}
            for name, short in (("own", False), ("short", True)):
                node.decoder.be_short(short)
                node.forget()
                node.capture(rows)
                runs[name] = node.replay([None] * rows)
            taken = clock.alternating(runs)
            parts = {f"{name} ms": value * 1e3 for name, value in taken.items()}
            parts |= {"floor ms": node.floor_ms([None] * rows)}
            yield Figure("layers", taken["own"] / taken["short"], rows, parts)
    finally:
        node.decoder.be_short(chosen)
        node.forget()


def lora_alone(node: Node, clock: Clock) -> Iterator[Figure]:
    """Rows 6 and 7: the LoRA kernels of a whole step, at true ranks and padded to the largest."""
    rows, every = min(64, max(node.size.rows)), [True] * len(node.modules.groups)
    node.bind(pools_of(node.modules, [8 * rows] * len(every), node.device))
    for count in sorted({rows, max(1, rows // 2)}, reverse=True):
        slots = adapters([16] * count, every)
        run = clock.captured(_lora_step(node, slots))
        with torch.inference_mode():
            taken = clock.alternating({"r16": run})["r16"]
        moved = adapter_bytes(node.modules, slots)
        parts = {"ms": taken * 1e3, "floor ms": node.milliseconds(moved), "GB": moved / 1e9}
        yield Figure("6", moved / taken / node.bandwidth, count, parts)
    mixed = [(8, 16, 32, 64)[row % 4] for row in range(rows)]
    kinds = {"paged": adapters(mixed, every), "padded": adapters(mixed, every, pages=8)}
    runs = {name: clock.captured(_lora_step(node, slots)) for name, slots in kinds.items()}
    with torch.inference_mode():
        both = clock.alternating(runs)
    size = {name: adapter_bytes(node.modules, slots) for name, slots in kinds.items()}
    parts = {f"{name} ms": value * 1e3 for name, value in both.items()}
    parts |= {f"{name} floor ms": node.milliseconds(value) for name, value in size.items()}
    yield Figure("7", both["paged"] / both["padded"], rows, parts)
    yield Figure("7b", size["paged"] / size["padded"], rows)


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


def promotion(node: Node, clock: Clock) -> Iterator[Figure]:
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
    parts = {f"{name} ms": value * 1e3 for name, value in taken.items()}
    parts |= {"floor ms": node.floor_ms(slots)}
    yield Figure("11", taken["promoting"] / taken["quiet"], rows, parts)
    alone = clock.alternating({"promote": copy})["promote"]
    size = sum(held.numel() * held.element_size() for _, held in mirror)
    rate = clock.host_bandwidth()
    parts = {"ms": alone * 1e3, "floor ms": size / rate * 1e3, "MB": size / 1e6, "GB/s": rate / 1e9}
    yield Figure("11b", alone / (size / rate), parts=parts)


def capacity(node: Node, clock: Clock) -> Iterator[Figure]:
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
    parts = {f"{name} ms": value * 1e3 for name, value in taken.items()}
    parts |= {"resident": many, "GB resident": size / 1e9, "floor ms": node.floor_ms(spread)}
    yield Figure("capacity", taken["5"] / taken["many"], rows, parts)

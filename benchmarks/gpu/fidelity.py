"""Fidelity: greedy tokens of the fused path, captured, beside those of the reference path.

A small model in float32, so that no rounding decides between two tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import Node, adapters, pools_of, random_model
from benchmarks.gpu.results import Figure
from benchmarks.gpu.sizes import SMALL, Size
from inference_node.kernels.backend import REFERENCE, Backend
from inference_node.kernels.lora import LoraPlan, SlotPages
from inference_node.kernels.paged_attention import AttentionPlan, Chunk
from inference_node.model.batch import ForwardBatch
from inference_node.model.checkpoint import ATTENTION, Base
from inference_node.model.decoder import Decoder
from inference_node.model.graphs import DecodeGraphs
from inference_node.model.static_batch import DecodeRow, StaticSizes
from inference_node.model.trace import trace

RANKS = (1, 8, 16, 9, 64)
BLOCK_TOKENS, BLOCKS = 16, 4
Draw = Callable[[Sequence[DecodeRow]], list[int]]


def fidelity(node: Node, clock: Clock) -> Iterator[Figure]:
    """Rows of every rank and of the base, each its own text, to the end of its blocks."""
    count = BLOCKS * BLOCK_TOKENS if clock.cuda else 1
    size = SMALL if clock.cuda else node.size
    expected = _greedy(_reference(_decoder(size, REFERENCE, node.device)), count)
    decoder = _decoder(size, node.decoder.backend, node.device)
    differ = 0
    for short in (False, True):
        decoder.be_short(short)
        differ += sum(
            mine != other
            for row, wanted in zip(_greedy(_captured(decoder, node), count), expected, strict=True)
            for mine, other in zip(row, wanted, strict=True)
        )
    yield Figure("fidelity", differ, parts={"tokens": 2 * count * len(expected)})


def _decoder(size: Size, backend: Backend, device: torch.device) -> Decoder:
    """The same weights and pages each time."""
    model = random_model(size, device, attention=ATTENTION, dtype=torch.float32)
    base = Base(
        model=model,
        name=size.name,
        architecture=type(model).__name__,
        fingerprint="random",
        device=device,
        dtype=torch.float32,
        max_context=size.context,
        traced=trace(copy.deepcopy(size.config)),
    )
    decoder = Decoder(base, backend=backend, linears="dense")
    decoder.allocate_cache(blocks=BLOCKS * (len(RANKS) + 1), block_tokens=BLOCK_TOKENS)
    pages = sum(-(-rank // 8) for rank in RANKS)
    groups = decoder.module_map.groups
    decoder.bind_pool(
        pools_of(decoder.module_map, [pages] * len(groups), device, dtype=torch.float32)
    )
    return decoder


def _slots(groups: int) -> list[SlotPages | None]:
    return [None, *adapters(RANKS, [True] * groups)]


def _greedy(draw: Draw, count: int) -> list[list[int]]:
    """Tokens of each row; its first is its number."""
    slots = _slots(4)
    rows = [[row + 1] for row in range(len(slots))]
    for position in range(count):
        step = [
            DecodeRow(tokens[-1], position, [1 + row * BLOCKS + b for b in range(BLOCKS)], slot)
            for row, (tokens, slot) in enumerate(zip(rows, slots, strict=True))
        ]
        for tokens, token in zip(rows, draw(step), strict=True):
            tokens.append(token)
    return [tokens[1:] for tokens in rows]


def _captured(decoder: Decoder, node: Node) -> Draw:
    graphs = DecodeGraphs(decoder.forward, node.record)
    sizes = StaticSizes(
        groups=len(decoder.module_map.groups),
        widest=8,
        blocks=BLOCKS,
        block_tokens=BLOCK_TOKENS,
        spare_block=BLOCKS * (len(RANKS) + 1) + 1,
    )
    graphs.capture([len(RANKS) + 1], sizes, device=node.device)

    def draw(step: Sequence[DecodeRow]) -> list[int]:
        decoded = graphs.run(step)
        assert decoded is not None, "the step was not captured"
        found: list[int] = decoded.best.tolist()
        return found

    return draw


def _reference(decoder: Decoder) -> Draw:
    device = decoder.base.device

    def draw(step: Sequence[DecodeRow]) -> list[int]:
        chunks = [Chunk(tuple(row.block_table), row.position, 1) for row in step]
        lora = LoraPlan.build(
            [(index, 1, row.slot) for index, row in enumerate(step)],
            groups=len(decoder.module_map.groups),
            device=device,
            dtype=torch.float32,
        )
        attention = AttentionPlan.build(chunks, block_tokens=BLOCK_TOKENS, device=device)
        batch = ForwardBatch(
            torch.tensor([row.token for row in step], device=device),
            torch.tensor([row.position for row in step], device=device),
            attention,
            lora,
            torch.arange(len(step), device=device),
        )
        found: list[int] = decoder.forward(batch).argmax(dim=-1).tolist()
        return found

    return draw

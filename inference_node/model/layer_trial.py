"""Which way layers run on the card at hand: both are tried at start, on the step they will run.

transformers' own layers serve unless the short ones give the same logits in less time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from inference_node.kernels.greedy import likeliest
from inference_node.model.batch import Decoded
from inference_node.model.decoder import Decoder
from inference_node.model.graphs import Record, Replay
from inference_node.model.static_batch import DecodeRow, StaticBatch, StaticSizes

log = logging.getLogger(__name__)

TOLERANCE = 2e-2
"""Of the norm of the logits: each layer rounds in another place."""
ROWS = 32
"""Rows of the step that is tried, or fewer where the node has fewer."""
_POSITION = 40

Seconds = Callable[[Replay], float]
"""How long a recorded step takes."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Both ways over one step."""

    own: float
    short: float
    """Seconds."""
    distance: float
    """Between their logits, relative; not a number if any is not finite."""

    @property
    def short_serves(self) -> bool:
        return self.distance < TOLERANCE and self.short < self.own

    def __str__(self) -> str:
        ways = f"short layers {self.short * 1e3:.2f} ms, own {self.own * 1e3:.2f} ms"
        return f"{ways}, logits apart by {self.distance:.1e}"


def choose_layers(
    decoder: Decoder, sizes: StaticSizes, *, max_rows: int, record: Record, seconds: Seconds
) -> None:
    """Leave `decoder` with the layers that serve. Call while no request has blocks.

    Writes to the blocks of the KV cache, and leaves them zeros. Whatever fails leaves transformers'
    own layers, and is logged.
    """
    if not decoder.can_be_short:
        return
    try:
        trial = _try(decoder, sizes, min(max_rows, ROWS, sizes.spare_block - 1), record, seconds)
    except Exception as error:
        decoder.be_short(False)
        log.warning("short layers cannot be used here: %s", error)
        return
    decoder.be_short(trial.short_serves)
    log.info("layers: %s", trial)


@torch.inference_mode()
def _try(
    decoder: Decoder, sizes: StaticSizes, rows: int, record: Record, seconds: Seconds
) -> Trial:
    caches = decoder.caches
    step = StaticBatch(rows, sizes, lora=False, device=caches[0].device)
    step.send(step.fill(_rows(rows, sizes)))
    taken, logits = [], []
    for short in (False, True):
        torch.manual_seed(0)
        for cache in caches:
            cache[1 : sizes.spare_block].normal_()
        decoder.be_short(short)
        replay, out = record(partial(_decode, decoder, step))
        taken.append(seconds(replay))
        logits.append(out.logits.float().clone())
    for cache in caches:
        cache.zero_()
    own, found = logits
    return Trial(taken[0], taken[1], float((found - own).norm() / own.norm()))


def _decode(decoder: Decoder, step: StaticBatch) -> Decoded:
    logits = decoder.forward(step.batch)
    return Decoded(logits, likeliest(logits))


def _rows(rows: int, sizes: StaticSizes) -> Sequence[DecodeRow]:
    """Each reads the blocks of others, but has the one it writes to for itself."""
    blocks = sizes.spare_block - 1
    position = min(_POSITION, sizes.blocks * sizes.block_tokens - 1)
    before = position // sizes.block_tokens
    table = [
        [*(1 + (row + 1 + index) % blocks for index in range(before)), 1 + row]
        for row in range(rows)
    ]
    return [DecodeRow(row, position, own, None) for row, own in enumerate(table)]

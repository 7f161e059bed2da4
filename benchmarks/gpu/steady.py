"""Row 13: how much of a steady decode the card waits, by the engine's own scheduler and runner.

Requests are read, scheduled, launched and their tokens taken as the engine does it, without text
and without callers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import BLOCK_TOKENS, Node, adapters, random_pool
from benchmarks.gpu.results import Figure
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.versions import Entry, Resident, VersionKey
from inference_node.engine.flights import Crashed, Flights
from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.runner import Runner
from inference_node.engine.scheduler import Scheduler
from inference_node.engine.sequence import Sequence
from inference_node.kernels.stopwatch import seconds_on_card
from inference_node.model.graphs import Replay
from inference_node.request import Request, Sampling, Stopping
from inference_node.text import Detokenizer, StopMatcher

STEP_TOKENS = 512
STEPS = 128
"""Of decode; a few where each is interpreted."""


def steady(node: Node, clock: Clock) -> Iterator[Figure]:
    """Rows of distinct r16 adapters, a step ahead and not."""
    rows = min(64, max(node.size.rows))
    pool = random_pool(node, 2 * rows)
    node.bind(pool.groups)
    runner = Runner(node.decoder, pool, block_tokens=BLOCK_TOKENS)
    try:
        runner.capture(
            max_rows=rows,
            max_context=node.size.context,
            max_rank=64,
            blocks=node.sizes.spare_block - 1,
            record=node.record,
            seconds=seconds_on_card if clock.cuda else _not_measured,
        )
        taken = {ahead: _wall(node, clock, runner, pool, rows, ahead) for ahead in (True, False)}
        graphs = runner.graphs
        assert graphs is not None
        device = clock.alternating({"step": graphs.held(rows, lora=True).replay})["step"]
    finally:
        node.decoder.be_short(node.short)
        node.refill()
    parts = {
        "device ms": device * 1e3,
        "wall ms": taken[True] * 1e3,
        "wall ms, not ahead": taken[False] * 1e3,
        "idle share, not ahead": max(0.0, 1 - device / taken[False]),
        "floor ms": node.floor_ms(adapters([16] * rows, [True] * len(node.modules.groups))),
    }
    yield Figure("13", max(0.0, 1 - device / taken[True]), rows, parts)


def _wall(
    node: Node, clock: Clock, runner: Runner, pool: AdapterPool, rows: int, ahead: bool
) -> float:
    """Seconds a step takes, from one to the next."""
    scheduler = Scheduler(
        BlockAllocator(node.sizes.spare_block - 1, block_tokens=BLOCK_TOKENS),
        max_rows=rows,
        step_tokens=max(STEP_TOKENS, rows),
    )
    flights = Flights(runner, ahead=ahead)
    sequences = [_request(node, pool, row) for row in range(rows)]
    for sequence in sequences:
        scheduler.add(sequence)

    def turn() -> None:
        for outcome in flights.advance(scheduler.schedule()):
            if isinstance(outcome, Crashed):
                raise outcome.error
            scheduler.ran(outcome.step)
            for drawn in outcome.drawn:
                assert drawn.token is not None, "logits are finite"
                drawn.sequence.tokens.append(drawn.token)

    while any(sequence.pending > 1 for sequence in sequences):
        turn()
    most = min(s.request.stopping.max_new_tokens - s.produced - s.unread for s in sequences)
    for _ in range(most // 4):
        turn()
    count = max(1, most // 2)

    def some() -> None:
        for _ in range(count):
            turn()

    taken = clock.wall(some) / count
    while flights.any:
        turn()
    return taken


def _request(node: Node, pool: AdapterPool, row: int) -> Sequence:
    """One of its own adapter, whose pages are taken and leased."""
    prompt = node.size.context // 4
    new = STEPS if node.device.type == "cuda" else 3
    held = Resident(
        VersionKey("bench", str(row)),
        ((2 * row + 1, 2 * row + 2),) * len(pool.groups),
        1.0,
        row + 1,
    )
    pool.claim(held)
    sequence = Sequence(
        request=Request(
            request_id=str(row),
            tenant="bench",
            adapter=str(row),
            prompt=tuple((row + place) % node.size.config.vocab_size for place in range(prompt)),
            sampling=Sampling(),
            stopping=Stopping(max_new_tokens=new, ignore_eos=True),
        ),
        on_event=lambda event: None,
        accepted_at=0.0,
        order=row,
        seed=0,
        detokenizer=cast(Detokenizer, None),
        stops=StopMatcher(()),
        room=node.size.context,
        entry=Entry("bench", str(row), "v1", 1, held.key),
    )
    sequence.lease = held
    return sequence


@torch.inference_mode()
def _not_measured(replay: Replay) -> float:
    replay()
    return 1.0

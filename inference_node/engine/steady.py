"""Steps that decode on from the one before: the same requests, each a token later. On the CPU.

What their rows read of the cache is what it was and a token more, and is not written out anew.
Which adapters they read is: no routing outlives its step.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from operator import is_

import numpy as np

from inference_node.engine.scheduler import Work
from inference_node.engine.sequence import Sequence
from inference_node.model.batch import ForwardBatch


@dataclass(slots=True)
class Written:
    """A step as it runs. Its tensors are written in place for the next one, if that goes on."""

    asked: list[Sequence]
    """In the order in which the step was scheduled."""
    work: tuple[Work, ...]
    """By row, and so is what follows."""
    rows: list[Sequence]
    tables: list[list[int]]
    """Requests' own: another list stands for other blocks."""
    lengths: list[int]
    batch: ForwardBatch
    """Without adapters."""
    token_ids: np.ndarray
    positions: np.ndarray
    contexts: np.ndarray
    slots: np.ndarray
    blocks: np.ndarray

    @classmethod
    def of(cls, asked: Rows[Work], work: tuple[Work, ...], batch: ForwardBatch) -> Written:
        plan = batch.attention
        rows = [item.sequence for item in work]
        tables = [sequence.block_table for sequence in rows]
        return cls(
            [item.sequence for item in asked],
            work,
            rows,
            tables,
            [len(table) for table in tables],
            batch,
            batch.token_ids.numpy(),
            batch.positions.numpy(),
            plan.decode_contexts.numpy(),
            plan.slots.numpy(),
            plan.decode_blocks.numpy(),
        )


class Steady:
    """Remembers one step. Used by the engine thread."""

    def __init__(self, *, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._last: Written | None = None

    def begin(self, asked: Rows[Work], work: tuple[Work, ...], batch: ForwardBatch) -> None:
        """`work` is by row what was `asked` for, and runs as `batch`."""
        self._last = None
        plan = batch.attention
        if (
            plan.slots.device.type == "cpu"
            and plan.decode_mask is None
            and all(item.length == 1 and item.samples for item in work)
        ):
            # Of all steps that go on from here none has a longer context.
            longest = plan.decode_blocks.shape[1] * self._block_tokens
            batch = replace(batch, attention=replace(plan, longest=longest), lora=None)
            self._last = Written.of(asked, work, batch)

    def go_on(self, asked: Rows[Work]) -> Written | None:
        """What was `asked` for, as it runs; None where all is to be written anew."""
        last = self._last
        if last is None or [item.sequence for item in asked] != last.asked:
            return None
        size, blocks = self._block_tokens, last.blocks
        tables = [sequence.block_table for sequence in last.rows]
        lengths = [len(table) for table in tables]
        cached = [sequence.cached for sequence in last.rows]
        if (
            not all(map(is_, tables, last.tables))
            or max(lengths) > blocks.shape[1]
            or any(item.length > 1 or not item.samples for item in asked)
        ):
            return None
        if lengths != last.lengths:
            for row, table in enumerate(tables):
                blocks[row, : len(table)] = table
            last.lengths = lengths
        last.token_ids[:] = [sequence.tokens[-1] for sequence in last.rows]
        last.positions[:] = cached
        last.contexts[:] = [position + 1 for position in cached]
        last.slots[:] = [
            table[position // size] * size + position % size
            for table, position in zip(tables, cached, strict=True)
        ]
        return last

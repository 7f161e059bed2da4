"""Which tokens of which requests run in the next step. Pure Python; owned by the engine thread.

Every running request gets its next token each step; what is left of the step's token budget goes
to prompts, in chunks, first come first served. Blocks are taken as tokens come; when there are
none, the request that came last gives its blocks up and starts over, keeping its lease.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.sequence import Phase, Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """The next `length` uncached tokens of one request."""

    sequence: Sequence
    length: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last token, so that a new one is drawn."""
        return self.length == self.sequence.pending


@dataclass(frozen=True, slots=True)
class Step:
    """Single-token work first, as the kernels want it."""

    work: tuple[Work, ...]


class Scheduler:
    """Holds the requests that have what they need to run."""

    def __init__(self, blocks: BlockAllocator, *, max_rows: int, step_tokens: int) -> None:
        self.blocks = blocks
        self._max_rows = max_rows
        self._step_tokens = step_tokens
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def add(self, sequence: Sequence) -> None:
        """The request holds its lease and may run."""
        sequence.phase = Phase.WAITING
        self._waiting.append(sequence)
        self._waiting.sort(key=lambda s: s.order)

    def remove(self, sequence: Sequence) -> None:
        """Take a request out and free its blocks; one that is not here is left alone."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._free(sequence)

    def schedule(self) -> Step | None:
        """The next step, or None when nothing can run."""
        work: list[Work] = []
        budget = self._step_tokens
        # Next tokens before prompts: an older request may have come ready, or back, with a prompt
        # that would take the whole step.
        for sequence in sorted(self._running, key=lambda s: (s.pending != 1, s.order)):
            if sequence in self._running and budget:
                length = min(sequence.pending, budget)
                if self._reserve(sequence, length):
                    work.append(Work(sequence, length))
                    budget -= length
        while self._waiting and budget and len(self._running) < self._max_rows:
            sequence = self._waiting[0]
            length = min(sequence.pending, budget)
            if not self._fits(sequence, sequence.pending):
                break
            self._take(sequence, length)
            self._waiting.pop(0)
            sequence.phase = Phase.RUNNING
            self._running.append(sequence)
            work.append(Work(sequence, length))
            budget -= length
        work = [item for item in work if item.sequence.phase is Phase.RUNNING]
        if not work:
            return None
        return Step(tuple(sorted(work, key=lambda item: item.length != 1)))

    def check_integrity(self) -> None:
        self.blocks.check_integrity([s.block_table for s in (*self._running, *self._waiting)])
        for sequence in self._waiting:
            assert not sequence.block_table, "a waiting request holds no blocks"
        for sequence in self._running:
            assert len(sequence.block_table) >= self.blocks.needed(sequence.cached)

    def _fits(self, sequence: Sequence, length: int) -> bool:
        return self.blocks.can_allocate(self._missing(sequence, length))

    def _missing(self, sequence: Sequence, length: int) -> int:
        return self.blocks.needed(sequence.cached + length) - len(sequence.block_table)

    def _take(self, sequence: Sequence, length: int) -> None:
        missing = self._missing(sequence, length)
        if missing > 0:
            sequence.block_table.extend(self.blocks.allocate(missing))

    def _reserve(self, sequence: Sequence, length: int) -> bool:
        """Blocks for `length` more tokens, preempting later requests; False: preempted itself."""
        while not self._fits(sequence, length):
            victim = max(self._running, key=lambda s: s.order)
            self._preempt(victim)
            if victim is sequence:
                return False
        self._take(sequence, length)
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._running.remove(victim)
        self._free(victim)
        self.add(victim)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.cached = 0


def earliest_deadline(sequences: Iterable[Sequence]) -> float | None:
    """The soonest deadline among `sequences`."""
    deadlines = [s.request.deadline for s in sequences if s.request.deadline is not None]
    return min(deadlines, default=None)

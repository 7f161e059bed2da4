"""Which tokens of which requests run in the next step. Pure Python; owned by the engine thread.

Every running request gets its next token each step; what is left of the step's token budget goes
to prompts, in chunks, in the order that `fairness` says. Blocks are taken as tokens come; when
there are none, the running request in the last place gives its blocks up and starts over, keeping
its lease. Who is at the head of the line is not overtaken by smaller ones behind. A request starts
behind the full blocks of its prefix that the cache holds already.

A step may be scheduled while the one before is on its way and its tokens are not known: they count
as there, so that positions and blocks are right. A request that turns out to have ended with such a
token has a row for nothing, which it pays for like any other.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from inference_node.engine.fairness import Fairness
from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.prefix import PrefixNames
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

    def __init__(
        self,
        blocks: BlockAllocator,
        *,
        max_rows: int,
        step_tokens: int,
        fairness: Fairness | None = None,
        prefixes: PrefixNames | None = None,
    ) -> None:
        """Without `prefixes`, requests share no blocks."""
        self.blocks = blocks
        self._prefixes = prefixes
        self._max_rows = max_rows
        self._step_tokens = step_tokens
        self._fairness = fairness or Fairness()
        self._waiting: dict[Sequence, None] = {}
        self._running: list[Sequence] = []
        """By place: the last is the first to give way."""
        self._gave_way = False
        """Somebody was preempted in this step: nobody else is let in before the next."""
        self.preemptions = 0

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
        self._waiting[sequence] = None
        self._fairness.join(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a request out and free its blocks; one that is not here is left alone."""
        if sequence in self._waiting:
            del self._waiting[sequence]
        elif sequence in self._running:
            self._running.remove(sequence)
            self._fairness.dismiss(sequence)
        self._fairness.leave(sequence)
        self._free(sequence)

    def distrust(self, sequence: Sequence) -> None:
        """The model failed on this request: nobody is to reuse what it wrote."""
        self.blocks.forget(sequence.block_table)

    def ran(self, step: Step) -> None:
        """The step's tokens are cached: let others find the blocks that they filled."""
        if self._prefixes is None:
            return
        for item in step.work:
            sequence = item.sequence
            known = min(sequence.cached, len(sequence.tokens))
            full = known // self.blocks.block_tokens
            if full > sequence.named and sequence.phase is Phase.RUNNING:
                names = self._prefixes.of(sequence, full)
                for index in range(sequence.named, full):
                    self.blocks.name(sequence.block_table[index], names[index])
                sequence.named = full

    def schedule(self) -> Step | None:
        """The next step, or None when nothing can run."""
        self._fairness.tick()
        self._gave_way = False
        chosen: list[Work] = []
        # Next tokens before prompts: the head of the line may have a prompt that would take the
        # whole step.
        for sequence in tuple(self._running):
            if sequence.pending == 1 and sequence.phase is Phase.RUNNING and not sequence.ends:
                self._give(sequence, 1, chosen)
        self._read_prompts(self._step_tokens - len(chosen), chosen)
        work = [item for item in chosen if item.sequence.phase is Phase.RUNNING]
        if not work:
            return None
        self._fairness.drew(item.sequence for item in work if item.samples)
        singles = [item for item in work if item.length == 1]
        return Step((*singles, *(item for item in work if item.length > 1)))

    def check_integrity(self) -> None:
        self.blocks.check_integrity([s.block_table for s in (*self._running, *self._waiting)])
        for sequence in self._waiting:
            assert not sequence.block_table, "a waiting request holds no blocks"
            assert sequence.in_line, "a waiting request is in line"
        for sequence in self._running:
            assert len(sequence.block_table) >= self.blocks.needed(sequence.cached)
            full = sequence.cached // self.blocks.block_tokens
            private = sequence.block_table[full:]
            assert self.blocks.would_free(private) == len(private), "a shared block is written"
        assert self._running == sorted(self._running, key=_place)

    def _read_prompts(self, budget: int, chosen: list[Work]) -> None:
        """Hand out `budget` tokens in the order of the line."""
        while budget and (sequence := self._fairness.next()) is not None:
            if sequence.phase is Phase.WAITING and not self._admit(sequence):
                break
            budget -= self._give(sequence, budget, chosen)
        # Who waits for room does not keep those that have it from reading on.
        for sequence in tuple(self._running):
            if budget and sequence.in_line and sequence.phase is Phase.RUNNING:
                budget -= self._give(sequence, budget, chosen)

    def _give(self, sequence: Sequence, most: int, chosen: list[Work]) -> int:
        """Up to `most` tokens of a running request; how many."""
        length = min(sequence.pending, most)
        if self._missing(sequence, length) > 0 and not self._reserve(sequence, length):
            return 0
        chosen.append(Work(sequence, length))
        if sequence.in_line:
            self._fairness.read(sequence, length)
        return length

    def _admit(self, sequence: Sequence) -> bool:
        """Let the head of the line run, if there is room for all of it or others make way."""
        if self._gave_way:
            return False
        reusable = self._reusable(sequence)
        if not self._has_room(sequence, reusable) and not self._make_way(sequence, reusable):
            return False
        del self._waiting[sequence]
        sequence.phase = Phase.RUNNING
        self._reuse(sequence, reusable)
        self._fairness.admit(sequence)
        insort(self._running, sequence, key=_place)
        return True

    def _reusable(self, head: Sequence) -> list[int]:
        """Blocks that hold the beginning of what it has to read."""
        if self._prefixes is None or head.whole_prompt:
            return []
        return self.blocks.find(self._prefixes.reusable(head))

    def _reuse(self, sequence: Sequence, reusable: list[int]) -> None:
        self.blocks.hold(reusable)
        sequence.block_table = reusable
        sequence.named = len(reusable)
        sequence.cached = len(reusable) * self.blocks.block_tokens
        found = min(sequence.cached, len(sequence.request.prompt))
        if sequence.admitted_at is None:
            sequence.reused = found
        sequence.paid = max(sequence.paid, found)

    def _has_room(self, head: Sequence, reusable: list[int]) -> bool:
        return len(self._running) < self._max_rows and self._short_by(head, reusable) <= 0

    def _short_by(self, head: Sequence, reusable: list[int]) -> int:
        """Blocks that are missing for all that it has to read."""
        own = self.blocks.needed(len(head.tokens)) - len(reusable)
        return own + self.blocks.kept_among(reusable) - self.blocks.free

    def _make_way(self, head: Sequence, reusable: list[int]) -> bool:
        """Preempt those that fairness says must yield, if that is enough."""
        rows = self._max_rows - len(self._running)
        missing = self._short_by(head, reusable)
        wanted = set(reusable)
        victims = []
        for victim in self._fairness.must_yield(head, self._running):
            victims.append(victim)
            rows += 1
            missing -= self.blocks.would_free(victim.block_table, wanted=wanted)
            if rows > 0 and missing <= 0:
                break
        else:
            return False
        for victim in victims:
            self._preempt(victim)
        return True

    def _fits(self, sequence: Sequence, length: int) -> bool:
        return self.blocks.can_allocate(self._missing(sequence, length))

    def _missing(self, sequence: Sequence, length: int) -> int:
        return self.blocks.needed(sequence.cached + length) - len(sequence.block_table)

    def _take(self, sequence: Sequence, length: int) -> None:
        missing = self._missing(sequence, length)
        if missing > 0:
            sequence.block_table.extend(self.blocks.allocate(missing))

    def _reserve(self, sequence: Sequence, length: int) -> bool:
        """Blocks for `length` more tokens, preempting from the last; False: preempted itself."""
        while not self._fits(sequence, length):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        self._take(sequence, length)
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._gave_way = True
        self.preemptions += 1
        self._running.remove(victim)
        self._fairness.dismiss(victim)
        self._free(victim)
        self._fairness.leave(victim)
        self.add(victim)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.cached = sequence.named = 0


def _place(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.place

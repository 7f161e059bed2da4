"""Requests that come, run and end on a scheduler without a model, and what each was served."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from inference_node.engine.fairness import Fairness
from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.scheduler import Scheduler
from inference_node.engine.sequence import Phase, Sequence
from inference_node.request import Stopping
from tests.inference_node.engine.sequences import make_sequence

Flow = tuple[str, str]
"""Tenant and adapter."""


@dataclass
class Traffic:
    """A scheduler under load. Weighted tokens: a prompt token once 1, a drawn one 2."""

    scheduler: Scheduler
    served: Counter[Flow] = field(default_factory=Counter)
    first_token: dict[int, int] = field(default_factory=dict)
    """By order of acceptance: the step that gave the first token."""
    ended: dict[int, int] = field(default_factory=dict)
    steps: int = 0
    orders: int = 0
    _read: Counter[int] = field(default_factory=Counter)

    def send(self, flow: Flow, *, prompt: int = 4, answer: int = 8, priority: int = 0) -> Sequence:
        tenant, adapter = flow
        sequence = make_sequence(
            prompt,
            order=self.orders,
            tenant=tenant,
            adapter=adapter,
            priority=priority,
            stopping=Stopping(max_new_tokens=answer),
        )
        self.orders += 1
        self.scheduler.add(sequence)
        return sequence

    def waiting(self, flow: Flow) -> int:
        return sum(_flow(sequence) == flow for sequence in self.scheduler.waiting)

    def rows(self, flow: Flow) -> int:
        return sum(_flow(sequence) == flow for sequence in self.scheduler.running)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._step()

    def _step(self) -> None:
        self.steps += 1
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        for item in step.work if step else ():
            sequence, drawn = item.sequence, item.samples
            sequence.cached += item.length
            prompt = min(sequence.cached, len(sequence.request.prompt))
            new = max(0, prompt - self._read[sequence.order])
            self._read[sequence.order] += new
            self.served[_flow(sequence)] += new + 2 * drawn
            if drawn:
                self._draw(sequence)

    def _draw(self, sequence: Sequence) -> None:
        sequence.tokens.append(1)
        self.first_token.setdefault(sequence.order, self.steps)
        if sequence.produced >= sequence.request.stopping.max_new_tokens:
            self.ended[sequence.order] = self.steps
            self.scheduler.remove(sequence)
            sequence.phase = Phase.DONE


def traffic_on(
    fairness: Fairness | None = None,
    *,
    rows: int = 8,
    step_tokens: int = 16,
    blocks: int = 4096,
    block_tokens: int = 4,
) -> Traffic:
    allocator = BlockAllocator(blocks, block_tokens=block_tokens)
    return Traffic(Scheduler(allocator, max_rows=rows, step_tokens=step_tokens, fairness=fairness))


def _flow(sequence: Sequence) -> Flow:
    return sequence.request.tenant, sequence.request.adapter

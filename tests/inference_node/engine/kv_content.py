"""A KV cache that remembers what was written where: reading anything else is seen."""

from __future__ import annotations

from inference_node.engine.scheduler import Step
from inference_node.engine.sequence import Sequence

Told = tuple[str, str, tuple[int, ...]]
"""Whose keys and values these are: tenant, version digest, and every token up to this one."""


class KvContent:
    """Does with blocks what the runner does."""

    def __init__(self, *, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.drawn: dict[Sequence, list[int]] = {}
        """Tokens that are on the device and not yet on the host."""
        self._slots: dict[tuple[int, int], Told] = {}
        self.computed = 0
        """Tokens that passed through the model."""

    def run(self, step: Step) -> list[Sequence]:
        """Read, blank and write blocks as a forward pass does; who is due a token."""
        size = self._block_tokens
        for item in step.work:
            sequence = item.sequence
            for position in range(sequence.cached):
                slot = (sequence.block_table[position // size], position % size)
                found = self._slots.get(slot)
                assert found == self._told(sequence, position), (
                    f"request {sequence.order} reads {found} at token {position}"
                )
        for item in step.work:
            for block in item.sequence.block_table[-(-item.sequence.cached // size) :]:
                for offset in range(size):
                    self._slots.pop((block, offset), None)
        due = [item.sequence for item in step.work if item.samples]
        for item in step.work:
            sequence, start = item.sequence, item.sequence.cached
            for position in range(start, start + item.length):
                slot = (sequence.block_table[position // size], position % size)
                self._slots[slot] = self._told(sequence, position)
            sequence.cached += item.length
            self.computed += item.length
        return due

    def _told(self, sequence: Sequence, position: int) -> Told:
        vdig = "" if sequence.entry is None else sequence.entry.key.vdig
        tokens = [*sequence.tokens, *self.drawn.get(sequence, ())]
        assert position < len(tokens), "nobody has drawn that token"
        return sequence.request.tenant, vdig, tuple(tokens[: position + 1])

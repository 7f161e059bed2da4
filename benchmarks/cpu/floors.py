"""Bytes and operations first: what a load would cost if memory or arithmetic were all it took.

A decode step reads the 4-bit base, the output embedding, the pages of every distinct adapter and
the context's keys and values once, and multiplies every row by all of it. Its floor is the larger
of bytes over the measured read rate and operations over the measured bf16 rate; a prompt's floor is
the same with all its rows in one pass. Nothing is counted for norms, activations, or Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds at least, for one model on one machine."""

    facts: Mapping[str, Any]
    rates: Mapping[str, float]

    @property
    def adapter_bytes(self) -> float:
        """Of one rank-8 adapter on all linears, bf16."""
        return 2.0 * float(self.facts["adapter_parameters_r8"])

    def step_s(
        self, rows: int, *, pages: int, row_pages: float, context: float, samples: int
    ) -> float:
        """`pages` distinct 8-rank pages are read, `row_pages` of them multiply each row.

        `context` tokens of keys and values are read for each of `samples` requests.
        """
        parameters = self.facts["linear_parameters"]
        moved = self.facts["base_bytes"] + pages * self.adapter_bytes
        moved += samples * context * self.facts["kv_bytes_a_token"]
        operations = 2.0 * rows * (parameters + row_pages * self.facts["adapter_parameters_r8"])
        operations += 2.0 * samples * self.facts["head_parameters"]
        return float(
            max(moved / self.rates["read_bytes_s"], operations / self.rates["bf16_operations_s"])
        )

    def load_s(self, requests: int, *, pages: int, prompt: int, new: int) -> float:
        """Prompts in one pass, then a step a token. `pages` are of all its adapters together."""
        row_pages = pages / requests
        first = self.step_s(
            requests * prompt, pages=pages, row_pages=row_pages, context=prompt, samples=requests
        )
        step = self.step_s(
            requests, pages=pages, row_pages=row_pages, context=prompt + new / 2, samples=requests
        )
        return first + (new - 1) * step

    def page_s(self) -> float:
        """One rank-8 adapter read and written, as when it moves from the host tier to its pages."""
        return self.adapter_bytes / self.rates["copy_bytes_s"]

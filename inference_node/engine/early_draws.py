"""Draws of a step whose tokens stay on the device: nothing is read back, and nothing waits."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from functools import partial

import torch

from inference_node.engine.sampler import uniform
from inference_node.engine.sequence import Sequence
from inference_node.engine.weighing import Knobs, drawn, numbers_of, weigh
from inference_node.model.graphs import Draw
from inference_node.request import Sampling


class EarlyDraws:
    """For steps of up to `rows` rows; the tokens are those that `sampler.sample` draws.

    There are two host sides, filled in turn: one may still be on its way while the other is filled.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        size = (rows, len(numbers_of(Sampling())) + 1)
        self._hosts = [torch.zeros(size, dtype=torch.float64, pin_memory=pinned) for _ in range(2)]
        self._on_device = torch.zeros(size, dtype=torch.float64, device=device)

    def prepare(self, sequences: Rows[Sequence]) -> Draw | None:
        """How the tokens of a step are drawn once its logits are there; None if none is."""
        rules = [sequence.request.sampling for sequence in sequences]
        drawing = [rule for rule in rules if rule.temperature > 0]
        if not drawing:
            return None
        self._hosts.reverse()
        filled = self._hosts[0][: len(rules)]
        filled.copy_(
            torch.tensor(
                [
                    (*numbers_of(rule), _point(sequence))
                    for sequence, rule in zip(sequences, rules, strict=True)
                ],
                dtype=torch.float64,
            )
        )
        return partial(self._draw, filled, drawing)

    @torch.inference_mode()
    def _draw(
        self,
        filled: torch.Tensor,
        drawing: Rows[Sampling],
        logits: torch.Tensor,
        best: torch.Tensor,
    ) -> torch.Tensor:
        values = self._on_device[: len(filled)]
        values.copy_(filled, non_blocking=True)
        numbers, at = values[:, :-1], values[:, -1:].contiguous()
        knobs = Knobs.over(numbers, drawing)
        relative = weigh(logits.float(), knobs, head=logits.shape[1])
        draws = (numbers[:, 0] > 0) & (best >= 0)
        return torch.where(draws, drawn(relative, at), best)


def _point(sequence: Sequence) -> float:
    if sequence.request.sampling.temperature <= 0:
        return 0.0
    return uniform(sequence.seed, sequence.produced + sequence.unread)

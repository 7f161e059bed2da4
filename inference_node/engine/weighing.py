"""Which tokens may be drawn with which probability, and which one is: on the device alone.

The order is temperature, top-k, top-p, min-p. With all of the vocabulary as `head`, nothing here
waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from inference_node.request import Sampling

_MORE = 16
"""Times as many tokens in the next round of top-p."""
_BLOCK = 256
"""Tokens whose weights are summed up before a draw looks for one among them."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The rules of some rows, and what the host knows of them."""

    temperature: torch.Tensor  # [rows, 1] float32, above 0
    top_k: torch.Tensor  # [rows, 1] int64; 0 keeps all
    top_p: torch.Tensor  # [rows, 1] float32
    min_p: torch.Tensor  # [rows, 1] float32
    largest_k: int
    """Of the rows' top_k."""
    cuts_mass: bool
    """Whether any row's top_p leaves tokens out."""
    cuts_rare: bool
    """Whether any row's min_p does."""

    @classmethod
    def of(cls, rules: Rows[Sampling], device: torch.device) -> Knobs:
        values = torch.tensor([numbers_of(rule) for rule in rules], dtype=torch.float64)
        return cls.over(values.to(device), rules)

    @classmethod
    def over(cls, values: torch.Tensor, rules: Rows[Sampling]) -> Knobs:
        """`values` [rows, 4] float64 on any device: `numbers_of` each of the rules."""
        temperature, top_k, top_p, min_p = values.split(1, dim=1)
        return cls(
            temperature.float().clamp(min=torch.finfo(torch.float32).tiny),
            top_k.long(),
            top_p.float(),
            min_p.float(),
            largest_k=max(rule.top_k for rule in rules),
            cuts_mass=any(rule.top_p < 1.0 for rule in rules),
            cuts_rare=any(rule.min_p > 0.0 for rule in rules),
        )


def numbers_of(rule: Sampling) -> tuple[float, float, float, float]:
    return rule.temperature, float(rule.top_k), rule.top_p, rule.min_p


def weigh(logits: torch.Tensor, knobs: Knobs, *, head: int) -> torch.Tensor:
    """Relative probability of each token, 1 for the likeliest and 0 for those that are left out.

    logits [rows, vocab] float32. Top-p looks at `head` of the likeliest tokens first, and then at
    more where they are not enough. Returns [rows, vocab] float32.
    """
    # From the top value down, nothing overflows however small the temperature is.
    scores = (logits - logits.amax(dim=-1, keepdim=True)) / knobs.temperature
    if knobs.largest_k > 0:
        _keep_top_k(scores, knobs)
    if knobs.cuts_mass:
        _keep_top_p(scores, knobs, head)
    relative = scores.exp()
    if knobs.cuts_rare:
        relative.masked_fill_(relative < knobs.min_p, 0)
    return relative


def drawn(relative: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """`find`, one token a row, [rows]; -1 where the weights are not finite."""
    finite = torch.isfinite(relative.sum(dim=-1))
    return torch.where(finite, find(relative, at)[:, 0], -1)


def find(relative: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The first token up to which the weights sum to more than the share `at` of their whole.

    relative [rows, vocab] float32, none below 0; at [rows, 1] float64 in [0, 1). Returns [rows, 1].
    A running sum over the vocabulary in double precision is the dearest part of a draw, so it is
    taken over blocks, and then inside one.
    """
    spare = -relative.shape[1] % _BLOCK
    blocks = torch.nn.functional.pad(relative, (0, spare)).unflatten(1, (-1, _BLOCK)).double()
    sums = blocks.sum(dim=-1).cumsum(dim=-1)  # [rows, blocks]
    goal = at * sums[:, -1:]
    block = torch.searchsorted(sums, goal, right=True).clamp(max=sums.shape[1] - 1)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, block)
    inside = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].cumsum(dim=-1)
    # The two ways to sum may differ in the last bit: never go past the block's last weight.
    last = torch.nextafter(inside[:, -1:], torch.zeros_like(goal))
    token = torch.searchsorted(inside, torch.minimum(goal - before, last), right=True)
    return block * _BLOCK + token


def _keep_top_k(scores: torch.Tensor, knobs: Knobs) -> None:
    vocabulary = scores.shape[1]
    best = scores.topk(min(knobs.largest_k, vocabulary), dim=-1).values
    last = best.gather(1, (knobs.top_k - 1).clamp(0, best.shape[1] - 1))
    some = (knobs.top_k > 0) & (knobs.top_k < vocabulary)
    scores.masked_fill_(some & (scores < last), -torch.inf)


def _keep_top_p(scores: torch.Tensor, knobs: Knobs, head: int) -> None:
    """Keep a token when those above it have less than top_p of what top-k left."""
    vocabulary, some = scores.shape[1], knobs.top_p < 1.0
    wanted = knobs.top_p.double() * scores.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    head = min(head, vocabulary)
    least, enough = _floor(scores, wanted, head)
    enough |= ~some[:, 0]
    while head < vocabulary and not bool(enough.all()):
        head = min(head * _MORE, vocabulary)
        left = (~enough).nonzero()[:, 0]
        least[left], enough[left] = _floor(scores[left], wanted[left], head)
    scores.masked_fill_(some & (scores < least), -torch.inf)


def _floor(
    scores: torch.Tensor, wanted: torch.Tensor, head: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, 1] the lowest score that stays; [rows] whether `head` tokens were enough to tell."""
    best = scores.topk(head, dim=-1).values
    masses = best.exp().double()
    above = masses.cumsum(dim=-1) - masses
    kept = (above < wanted).sum(dim=-1, keepdim=True)
    return best.gather(1, kept.clamp(min=1) - 1), kept[:, 0] < head

"""From logits to the next token, each row by its own request's rules.

The order is that of transformers: logit edits (`logit_edits`), temperature, top-k, top-p, min-p.
Randomness is a function of the request's seed and of how many tokens it has: nothing is kept
between steps, so a request draws the same tokens alone, in any batch, at any row, and after it was
preempted. Equal logits stay or go together, so no order among them matters.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch

from inference_node.engine.logit_edits import edit
from inference_node.engine.sequence import Sequence
from inference_node.kernels.greedy import likeliest
from inference_node.request import Sampling

_HEAD = 128
"""Top-p looks at so many of the likeliest tokens first, and at more only in rows that need them."""
_MORE = 16
"""Times as many in the next round."""
_BLOCK = 256
"""Tokens whose weights are summed up before a draw looks for one among them."""


def sample(
    logits: torch.Tensor, sequences: Rows[Sequence], best: torch.Tensor | None = None
) -> list[int | None]:
    """One token a row; None where the row's logits are not finite.

    logits [rows, vocab] of any type, row i belonging to sequences[i]; what is drawn is drawn in
    float32. Rows that are plainly greedy cost an argmax, whatever the others ask for; `best` is
    `likeliest(logits)` if it is known.
    """
    if logits.shape[0] != len(sequences):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(sequences)} requests")
    found = (likeliest(logits) if best is None else best).tolist()
    tokens: list[int | None] = [None if token < 0 else token for token in found]
    asking = [row for row, s in enumerate(sequences) if found[row] >= 0 and not s.plain]
    if asking:
        chosen = _choose(logits[asking].float(), [sequences[row] for row in asking])
        for row, token in zip(asking, chosen, strict=True):
            tokens[row] = token
    return tokens


def weights(logits: torch.Tensor, rules: Rows[Sampling]) -> torch.Tensor:
    """Relative probability of each token, 1 for the likeliest and 0 for those that are left out.

    logits [rows, vocab] float32; every temperature above 0. Returns [rows, vocab] float32.
    """
    tiny = torch.finfo(logits.dtype).tiny
    temperatures = _column([max(rule.temperature, tiny) for rule in rules], logits)
    # From the top value down, nothing overflows however small the temperature is.
    scores = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    _keep_top_k(scores, rules)
    _keep_top_p(scores, rules)
    relative = scores.exp()
    if any(rule.min_p > 0 for rule in rules):
        relative[relative < _column([rule.min_p for rule in rules], logits)] = 0
    return relative


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1 - 2**-48], the `index`-th of `seed`: Philox4x64, a counter-based generator.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    raw = int(np.random.Philox(key=seed, counter=index).random_raw())
    return float(raw >> 16) * 2.0**-48


def _choose(logits: torch.Tensor, sequences: Rows[Sequence]) -> list[int | None]:
    """Overwrites logits."""
    edit(logits, sequences)
    tokens: list[int | None] = logits.argmax(dim=-1).tolist()
    drawing = [row for row, s in enumerate(sequences) if s.request.sampling.temperature > 0]
    if drawing:
        drawn = _draw(logits[drawing], [sequences[row] for row in drawing])
        for row, token in zip(drawing, drawn, strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: torch.Tensor, sequences: Rows[Sequence]) -> list[int | None]:
    relative = weights(logits, [sequence.request.sampling for sequence in sequences])
    points = [[uniform(sequence.seed, sequence.produced)] for sequence in sequences]
    at = torch.tensor(points, dtype=torch.float64, device=logits.device)
    finite = torch.isfinite(relative.sum(dim=-1)).tolist()
    tokens = find(relative, at)[:, 0].tolist()
    return [token if ok else None for token, ok in zip(tokens, finite, strict=True)]


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


def _keep_top_k(scores: torch.Tensor, rules: Rows[Sampling]) -> None:
    vocabulary = scores.shape[1]
    rows = [row for row, rule in enumerate(rules) if 0 < rule.top_k < vocabulary]
    if not rows:
        return
    counts = torch.tensor([[rules[row].top_k] for row in rows], device=scores.device)
    mine = scores[rows]
    best = mine.topk(int(counts.max()), dim=-1).values
    scores[rows] = mine.masked_fill(mine < best.gather(1, counts - 1), -torch.inf)


def _keep_top_p(scores: torch.Tensor, rules: Rows[Sampling]) -> None:
    """Keep a token when those above it have less than top_p of what top-k left."""
    rows = [row for row, rule in enumerate(rules) if rule.top_p < 1.0]
    if not rows:
        return
    mine = scores[rows]
    wanted = _column([rules[row].top_p for row in rows], mine).double()
    wanted = wanted * mine.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    vocabulary = mine.shape[1]
    head = min(_HEAD, vocabulary)
    least, enough = _floor(mine, wanted, head)
    while head < vocabulary and not bool(enough.all()):
        head = min(head * _MORE, vocabulary)
        left = (~enough).nonzero()[:, 0]
        least[left], enough[left] = _floor(mine[left], wanted[left], head)
    scores[rows] = mine.masked_fill(mine < least, -torch.inf)


def _floor(
    scores: torch.Tensor, wanted: torch.Tensor, head: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, 1] the lowest score that stays; [rows] whether `head` tokens were enough to tell."""
    best = scores.topk(head, dim=-1).values
    masses = best.exp().double()
    above = masses.cumsum(dim=-1) - masses
    kept = (above < wanted).sum(dim=-1, keepdim=True)
    return best.gather(1, kept.clamp(min=1) - 1), kept[:, 0] < head


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]

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
from inference_node.engine.weighing import Knobs, drawn, weigh
from inference_node.kernels.greedy import likeliest
from inference_node.request import Sampling

_HEAD = 128
"""Top-p looks at so many of the likeliest tokens first, and at more only in rows that need them."""


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
    return weigh(logits, Knobs.of(rules, logits.device), head=_HEAD)


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
    tokens: list[int] = drawn(relative, at).tolist()
    return [None if token < 0 else token for token in tokens]

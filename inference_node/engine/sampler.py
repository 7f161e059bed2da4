"""From logits to the next token, each row by its own request's rules.

A row's draws come from a generator seeded by its request alone, so equal seeds give equal tokens
for equal logits whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from inference_node.engine.sequence import Sequence
from inference_node.request import Sampling


def sample(logits: torch.Tensor, sequences: Rows[Sequence]) -> list[int | None]:
    """One token a row; None where the row's logits are not finite.

    logits [rows, vocab] float32, row i belonging to sequences[i].
    """
    if logits.shape[0] != len(sequences):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(sequences)} requests")
    best = logits.argmax(dim=-1).tolist()
    finite = torch.isfinite(logits.sum(dim=-1)).tolist()
    tokens: list[int | None] = []
    for row, sequence in enumerate(sequences):
        if not finite[row]:
            tokens.append(None)
        elif sequence.request.sampling.temperature == 0.0:
            tokens.append(best[row])
        else:
            tokens.append(_draw(logits[row], sequence))
    return tokens


def _draw(logits: torch.Tensor, sequence: Sequence) -> int:
    if sequence.draws is None:
        sequence.draws = torch.Generator().manual_seed(sequence.seed)
    values, indices = candidates(logits.cpu(), sequence.request.sampling)
    chosen = torch.multinomial(values, 1, generator=sequence.draws)
    return int(indices[chosen])


def candidates(logits: torch.Tensor, rules: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, highest first, and token ids that top-k and then top-p leave.

    logits [vocab]; temperature above 0. The likeliest token is always left.
    """
    k = min(rules.top_k or logits.shape[0], logits.shape[0])
    values, indices = torch.topk(logits, k)
    # From the top value down, nothing overflows however small the temperature is.
    temperature = max(rules.temperature, torch.finfo(values.dtype).tiny)
    probabilities = torch.softmax((values - values[0]) / temperature, dim=-1)
    if rules.top_p < 1.0:
        before = torch.cumsum(probabilities, dim=-1) - probabilities
        kept = int((before < rules.top_p).sum())
        probabilities, indices = probabilities[: max(kept, 1)], indices[: max(kept, 1)]
    return probabilities, indices

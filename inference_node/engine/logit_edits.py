"""What a request's rules change in the model's logits before a token is chosen.

In this order, which is that of vLLM (`vllm/v1/sample/sampler.py`) and of transformers
(`GenerationMixin._get_logits_processor`): logit bias; repetition, then frequency, then presence
penalty; last, tokens that would end the answer too early become impossible.

Edits touch single logits, [row, token] pairs laid end to end over the batch, so their cost follows
the tokens a request holds and not the vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import torch

from inference_node.engine.sequence import Sequence

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Tally:
    """A request's distinct tokens, and how often each is in its answer."""

    def __init__(self, sequence: Sequence) -> None:
        self._taken = 0
        self._place: dict[int, int] = {}
        self._ids = array("q")
        self._counts = array("f")
        if sequence.request.sampling.repetition_penalty == 1.0:
            # Only repetition penalty looks at the prompt.
            self._taken = len(sequence.request.prompt)

    def catch_up(self, sequence: Sequence) -> None:
        prompt = len(sequence.request.prompt)
        for index in range(self._taken, len(sequence.tokens)):
            token = sequence.tokens[index]
            place = self._place.setdefault(token, len(self._ids))
            if place == len(self._ids):
                self._ids.append(token)
                self._counts.append(0.0)
            self._counts[place] += index >= prompt
        self._taken = len(sequence.tokens)

    @property
    def ids(self) -> Indices:
        return np.array(self._ids, dtype=np.int64)

    @property
    def counts(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.array(self._counts, dtype=np.float32)


class Pairs:
    """[row, token] places of a [rows, vocab] tensor, each at most once."""

    def __init__(self, parts: list[tuple[int, Indices]], device: torch.device) -> None:
        self._lengths = torch.tensor([len(ids) for _, ids in parts], device=device)
        rows = torch.tensor([row for row, _ in parts], device=device)
        self.rows = rows.repeat_interleave(self._lengths)
        self.tokens = torch.from_numpy(np.concatenate([ids for _, ids in parts])).to(device)

    def spread(self, values: list[float]) -> torch.Tensor:
        """One value a part, as float32 for each of its places."""
        each = torch.tensor(values, dtype=torch.float32, device=self.rows.device)
        return each.repeat_interleave(self._lengths)


def edit(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    """Apply each request's rules to its row of logits [rows, vocab] float32, in place."""
    _add_bias(logits, sequences)
    _penalise(logits, sequences)
    _hold_back(logits, sequences)


def _add_bias(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    parts: list[tuple[int, Indices]] = []
    values: list[float] = []
    for row, sequence in enumerate(sequences):
        bias = sequence.request.sampling.logit_bias
        known = [token for token in bias if token < logits.shape[1]]
        if known:
            parts.append((row, np.array(known, dtype=np.int64)))
            values += [bias[token] for token in known]
    if parts:
        at = Pairs(parts, logits.device)
        logits[at.rows, at.tokens] += torch.tensor(values, dtype=logits.dtype, device=logits.device)


def _penalise(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    """`x > 0 ? x / repetition : x * repetition`, then `- frequency * count - presence`.

    Repetition penalty follows Keskar et al., "CTRL" (2019), over prompt and answer; the others
    follow OpenAI's, over the answer alone.
    """
    parts: list[tuple[int, Indices]] = []
    counts = []
    rules = []
    for row, sequence in enumerate(sequences):
        if sequence.request.sampling.penalises:
            tally = sequence.sampler = sequence.sampler or Tally(sequence)
            tally.catch_up(sequence)
            parts.append((row, tally.ids))
            counts.append(tally.counts)
            rules.append(sequence.request.sampling)
    if not parts:
        return
    at = Pairs(parts, logits.device)
    scores = logits[at.rows, at.tokens]
    repetition = at.spread([each.repetition_penalty for each in rules])
    scores = torch.where(scores > 0, scores / repetition, scores * repetition)
    times = torch.from_numpy(np.concatenate(counts)).to(logits.device)
    scores -= at.spread([each.frequency_penalty for each in rules]) * times
    scores -= at.spread([each.presence_penalty for each in rules]) * (times > 0)
    logits[at.rows, at.tokens] = scores


def _hold_back(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    parts = []
    for row, sequence in enumerate(sequences):
        held = sorted(token for token in sequence.too_early if token < logits.shape[1])
        if held:
            parts.append((row, np.array(held, dtype=np.int64)))
    if parts:
        at = Pairs(parts, logits.device)
        logits[at.rows, at.tokens] = -torch.inf

"""Rules change logits exactly as transformers' own processors do, each row by its own.

transformers has no presence and frequency penalty: for those the oracle is the definition, written
out token by token.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference_node.engine import logit_edits
from inference_node.engine.logit_edits import edit
from inference_node.engine.sampler import sample, weights
from inference_node.engine.sequence import Sequence
from inference_node.request import Sampling, Stopping
from tests.inference_node.engine.sequences import make_sequence

VOCABULARY = 200
EOS = frozenset({2, 3})
PROMPT = [5, 6, 6, 7, 2]


def requests(count: int, seed: int) -> list[Sequence]:
    """Every row has other rules and another history."""
    chance = random.Random(seed)

    def maybe(value: float, unset: float) -> float:
        return value if chance.random() < 0.6 else unset

    made = []
    for _ in range(count):
        sampling = Sampling(
            temperature=chance.uniform(0.2, 2),
            top_p=maybe(chance.uniform(0.05, 0.99), 1.0),
            top_k=int(maybe(chance.randrange(1, 60), 0)),
            min_p=maybe(chance.uniform(0.001, 0.5), 0.0),
            repetition_penalty=maybe(chance.uniform(0.5, 2), 1.0),
            logit_bias={
                chance.randrange(VOCABULARY): chance.uniform(-9, 9)
                for _ in range(chance.randrange(4))
            },
        )
        stopping = Stopping(
            min_new_tokens=chance.choice([0, 6]), stop_token_ids=(chance.randrange(VOCABULARY),)
        )
        sequence = make_sequence(PROMPT, sampling=sampling, stopping=stopping)
        sequence.eos = EOS
        sequence.tokens += [chance.randrange(10) for _ in range(chance.randrange(9))]
        made.append(sequence)
    return made


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def oracle_edits(sequence: Sequence) -> LogitsProcessorList:
    sampling, stopping = sequence.request.sampling, sequence.request.stopping
    found = LogitsProcessorList()
    if sampling.logit_bias:
        bias = {(token,): value for token, value in sampling.logit_bias.items()}
        found.append(SequenceBiasLogitsProcessor(bias))
    if sampling.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    ending = sorted({*sequence.eos, *stopping.stop_token_ids})
    found.append(MinNewTokensLengthLogitsProcessor(len(PROMPT), stopping.min_new_tokens, ending))
    return found


def oracle_filters(sampling: Sampling) -> LogitsProcessorList:
    found = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        found.append(MinPLogitsWarper(sampling.min_p))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_mixed_batch_is_edited_row_by_row_as_transformers_would(seed: int) -> None:
    sequences = requests(16, seed)
    logits = logits_of(16, seed)
    expected = torch.cat(
        [
            oracle_edits(sequence)(torch.tensor([sequence.tokens]), row[None].clone())
            for row, sequence in zip(logits, sequences, strict=True)
        ]
    )
    edited = logits.clone()
    edit(edited, sequences)
    torch.testing.assert_close(edited, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(edited, logits)


@pytest.mark.parametrize("seed", range(8))
def test_a_mixed_batch_is_filtered_row_by_row_as_transformers_would(seed: int) -> None:
    rules = [sequence.request.sampling for sequence in requests(16, seed)]
    logits = logits_of(16, seed)
    found = weights(logits, rules)
    for row, rule in enumerate(rules):
        expected = oracle_filters(rule)(torch.tensor([PROMPT]), logits[row][None].clone())[0]
        assert torch.equal(found[row] > 0, expected > -torch.inf)
        torch.testing.assert_close(found[row] / found[row].sum(), expected.softmax(-1))


def test_top_p_finds_the_same_tokens_however_many_it_looks_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = [Sampling(temperature=1.0, top_p=p) for p in (0.1, 0.5, 0.9, 0.999)]
    logits = logits_of(4)
    whole = weights(logits, rules)
    monkeypatch.setattr("inference_node.engine.sampler._HEAD", 3)
    assert torch.equal(weights(logits, rules), whole)


def test_presence_and_frequency_penalty_count_the_answer_and_not_the_prompt() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    sequence = make_sequence(PROMPT, sampling=sampling)
    sequence.tokens += [9, 9, 9, 6]
    expected = logits_of(1)
    edited = expected.clone()
    for token, times in ((9, 3), (6, 1)):
        expected[0, token] -= 0.25 * times + 0.5
    edit(edited, [sequence])
    torch.testing.assert_close(edited, expected)


def test_penalties_go_on_counting_token_by_token_as_if_counted_at_once() -> None:
    sampling = Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25)
    growing = make_sequence(PROMPT, sampling=sampling)
    for token in (9, 5, 9, 11):
        growing.tokens.append(token)
        kept, fresh = logits_of(1), logits_of(1)
        edit(kept, [growing])
        at_once = make_sequence(PROMPT, sampling=sampling)
        at_once.tokens[:] = growing.tokens
        edit(fresh, [at_once])
        assert torch.equal(kept, fresh)


def test_control_a_tally_that_forgets_the_last_token_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = logit_edits.Tally.catch_up

    def late(tally: logit_edits.Tally, sequence: Sequence) -> None:
        last = sequence.tokens.pop()
        whole(tally, sequence)
        sequence.tokens.append(last)

    monkeypatch.setattr(logit_edits.Tally, "catch_up", late)
    with pytest.raises(AssertionError):
        test_presence_and_frequency_penalty_count_the_answer_and_not_the_prompt()


def test_ending_tokens_cannot_come_before_their_time_and_may_after() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 2], logits[0, 50], logits[0, 4] = 9.0, 8.0, 7.0
    stopping = Stopping(min_new_tokens=1, stop_token_ids=(50,))
    for ignored, first in ((False, 4), (True, 2)):
        sequence = make_sequence(stopping=replace(stopping, ignore_eos=ignored))
        sequence.eos = EOS
        sequence.plain = False
        assert sample(logits, [sequence]) == [first]
        sequence.tokens.append(first)
        assert sample(logits, [sequence]) == [2]


def test_greedy_rows_heed_bias_and_penalties_and_leave_the_models_logits_alone() -> None:
    logits = torch.zeros(3, VOCABULARY)
    logits[:, 7], logits[:, 8] = 2.0, 1.9
    before = logits.clone()
    rows = [
        make_sequence(PROMPT, sampling=Sampling(logit_bias={9: 100.0, 10**6: 5.0})),
        make_sequence(PROMPT, sampling=Sampling(repetition_penalty=2.0)),
        make_sequence(PROMPT),
    ]
    assert sample(logits, rows) == [9, 8, 7]
    assert torch.equal(logits, before)


def test_plainly_greedy_rows_are_never_edited_or_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "inference_node.engine.sampler.edit", lambda logits, rows: seen.append(len(rows))
    )
    plain = [make_sequence() for _ in range(15)]
    sample(logits_of(15), plain)
    assert seen == []
    sample(logits_of(16), [*plain, make_sequence(sampling=Sampling(temperature=1.0))])
    assert seen == [1]

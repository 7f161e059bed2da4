"""Each row is drawn by its own request's rules, from its own request's randomness."""

from __future__ import annotations

import math
import random

import pytest
import torch

from inference_node.engine import sampler as sampler_module
from inference_node.engine.sampler import sample, uniform, weights
from inference_node.engine.sequence import Sequence
from inference_node.engine.weighing import find
from inference_node.request import Sampling
from tests.inference_node.engine.sequences import make_sequence

VOCABULARY = 40
PINNED = [0.12701753267435834, 0.5808291945867161, 0.0167798640579484]


def logits_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def drawing(seed: int, **rules: float) -> Sequence:
    sampling = Sampling(
        temperature=rules.get("temperature", 1.0),
        top_p=rules.get("top_p", 1.0),
        top_k=int(rules.get("top_k", 0)),
    )
    return make_sequence(seed=seed, sampling=sampling)


def answer(sequence: Sequence, steps: list[torch.Tensor]) -> list[int]:
    """What a request alone draws, step by step."""
    for logits in steps:
        (token,) = sample(logits[None], [sequence])
        assert token is not None
        sequence.tokens.append(token)
    return sequence.tokens[len(sequence.request.prompt) :]


def naive(logits: torch.Tensor, rules: Sampling) -> dict[int, float]:
    """Top-k, softmax, then the smallest set of likeliest tokens that reaches top-p."""
    order = sorted(range(len(logits)), key=lambda token: -float(logits[token]))
    order = order[: rules.top_k or len(order)]
    top = float(logits[order[0]])
    weights = [math.exp((float(logits[token]) - top) / rules.temperature) for token in order]
    kept: dict[int, float] = {}
    mass = 0.0
    for token, weight in zip(order, weights, strict=True):
        kept[token] = weight / sum(weights)
        mass += weight / sum(weights)
        if rules.top_p < 1.0 and mass >= rules.top_p:
            break
    return kept


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 2, 7, VOCABULARY, VOCABULARY + 5])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_top_k_then_top_p_leave_the_tokens_a_naive_filter_leaves(
    temperature: float, top_k: int, top_p: float
) -> None:
    rules = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(5):
        logits = logits_of(VOCABULARY, seed=seed)
        expected = naive(logits, rules)
        found = weights(logits[None], [rules])[0]
        assert set(found.nonzero()[:, 0].tolist()) == set(expected)
        shares = torch.zeros(VOCABULARY)
        shares[list(expected)] = torch.tensor(list(expected.values()))
        torch.testing.assert_close(found / found.sum(), shares / shares.sum())


def test_the_likeliest_token_is_always_left() -> None:
    logits = torch.zeros(4)
    logits[2] = 1.0
    for rules in (Sampling(temperature=1.0, top_p=1e-9), Sampling(temperature=1.0, top_k=1)):
        assert weights(logits[None], [rules])[0].nonzero().tolist() == [[2]]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 1e-300, 5e-324])
def test_the_smallest_temperatures_are_greedy_and_stop_no_step(temperature: float) -> None:
    logits = logits_of(VOCABULARY) * 10
    tiny, neighbour = drawing(1, temperature=temperature), make_sequence()
    best = int(logits.argmax())
    assert sample(torch.stack([logits, logits]), [tiny, neighbour]) == [best, best]


def test_greedy_rows_take_the_likeliest_token_and_need_no_randomness() -> None:
    logits = logits_of(3, VOCABULARY)
    sequences = [make_sequence(seed=seed) for seed in range(3)]
    assert sample(logits, sequences) == logits.argmax(dim=-1).tolist()
    assert all(sequence.plain for sequence in sequences)


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch() -> None:
    steps = [logits_of(VOCABULARY, seed=step) for step in range(30)]
    alone = drawing(11)
    expected = answer(alone, steps)
    assert len(set(expected)) > 5
    again = drawing(11)
    neighbours = [drawing(seed) for seed in range(4)] + [make_sequence()]
    for step, logits in enumerate(steps):
        place = step % 4
        company = neighbours[: 1 + step % 5]
        rows = [logits_of(VOCABULARY, seed=100 + step + row) for row in range(len(company))]
        batch, sequences = [*rows], [*company]
        batch.insert(place, logits)
        sequences.insert(place, again)
        found = sample(torch.stack(batch), sequences)
        assert found[sequences.index(again)] == expected[step]
        again.tokens.append(expected[step])


def test_another_seed_gives_other_tokens() -> None:
    steps = [*logits_of(VOCABULARY).repeat(60, 1)]
    one, other = (answer(drawing(seed), steps) for seed in (1, 2))
    assert one != other
    assert len(set(one)) > 5


def test_control_one_generator_for_the_whole_batch_is_not_reproducible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [logits_of(VOCABULARY, seed=step) for step in range(30)]

    def seed_one_generator() -> None:
        shared = random.Random(11)
        monkeypatch.setattr(sampler_module, "uniform", lambda seed, index: shared.random())

    seed_one_generator()
    expected = answer(drawing(11), steps)
    seed_one_generator()
    again, neighbour = drawing(11), drawing(12)
    assert [sample(torch.stack([row, row]), [neighbour, again])[1] for row in steps] != expected


@pytest.mark.parametrize("vocabulary", [1, 40, 256, 257, 1000])
def test_a_draw_finds_the_token_that_a_running_sum_would(vocabulary: int) -> None:
    chance = torch.Generator().manual_seed(vocabulary)
    relative = torch.rand(300, vocabulary, generator=chance)
    relative[torch.rand(relative.shape, generator=chance) < 0.7] = 0
    relative[:, vocabulary // 2] = 1
    at = torch.rand(300, 1, generator=chance, dtype=torch.float64)
    at[0], at[1] = 0, 1 - 2.0**-48
    found = find(relative, at)
    sums = relative.double().cumsum(dim=-1)
    assert torch.equal(found, torch.searchsorted(sums, at * sums[:, -1:], right=True))
    assert bool((relative.gather(1, found) > 0).all())


def test_draws_are_numbers_of_the_seed_and_the_place_that_no_release_may_change() -> None:
    assert [uniform(11, index) for index in range(3)] == PINNED
    assert uniform(2**64 - 1, 2**20) < 1.0
    assert len({uniform(seed, index) for seed in range(50) for index in range(50)}) == 2500


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.5, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.2, "top_k": 5, "top_p": 0.7},
    ],
    ids=str,
)
def test_tokens_come_up_as_often_as_their_probability_says(rules: dict[str, float]) -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -0.5, -2.0])
    sequence = drawing(3, **rules)
    expected = naive(logits, sequence.request.sampling)
    whole = sum(expected.values())
    draws = 3000
    counts = dict.fromkeys(range(len(logits)), 0)
    for _ in range(draws):
        token = sample(logits[None], [sequence])[0]
        assert token is not None
        sequence.tokens.append(token)
        counts[token] += 1
    for token, count in counts.items():
        share = expected.get(token, 0.0) / whole
        spread = math.sqrt(draws * share * (1 - share))
        assert abs(count - draws * share) <= 5 * spread, (token, count, share)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_reported_and_leaves_the_others_alone(bad: float) -> None:
    logits = logits_of(4, VOCABULARY)
    expected = sample(logits, [drawing(1), make_sequence(), drawing(2), make_sequence()])
    poisoned = logits.clone()
    poisoned[0, 3] = bad
    poisoned[3] = bad
    sequences = [drawing(1), make_sequence(), drawing(2), make_sequence()]
    assert sample(poisoned, sequences) == [None, expected[1], expected[2], None]


def test_a_batch_without_rows_gives_no_tokens() -> None:
    assert sample(torch.zeros(0, VOCABULARY), []) == []


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_and_requests_of_different_number_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="rows of logits for 2 requests"):
        sample(torch.zeros(rows, VOCABULARY), [make_sequence(), make_sequence()])

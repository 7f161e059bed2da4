"""The yardstick of T12: it tells spreads apart, and cries wolf as rarely as it says."""

from __future__ import annotations

import random

import pytest

from tests.chaos.isolation import ACROSS, FEWEST, SENSITIVE, same_spread


def draws(seed: int, count: int, *, shift: float = 0.0) -> list[float]:
    dice = random.Random(seed)
    return [dice.expovariate(1.0) + shift for _ in range(count)]


def test_equal_spreads_look_unequal_about_as_often_as_the_threshold_says() -> None:
    alarms = sum(
        same_spread(draws(seed, 100), draws(-seed - 1, 100)) <= ACROSS for seed in range(1000)
    )
    assert alarms <= 2.5 * ACROSS * 1000
    middling = sum(same_spread(draws(s, 100), draws(-s - 1, 100)) <= 0.5 for s in range(1000))
    assert 350 <= middling <= 600


def test_the_fewest_samples_tell_a_plain_difference_and_one_in_two_a_subtle_one() -> None:
    assert same_spread(draws(1, FEWEST), draws(2, FEWEST, shift=3.0)) < SENSITIVE
    assert same_spread(draws(1, 250), draws(2, 250, shift=0.3)) < ACROSS


@pytest.mark.parametrize(("steps", "p"), [(30, 0.05), (36, 0.01), (43, 0.001)])
def test_p_values_agree_with_the_tables(steps: int, p: float) -> None:
    """Critical values of the Kolmogorov distribution: 1.358, 1.628 and 1.949."""
    assert same_spread(range(250), range(steps, 250 + steps)) == pytest.approx(p, rel=0.05)

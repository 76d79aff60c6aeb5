"""Tests and bounds of means keep their promise at every sample size, and are not idle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from amc.bench.cascade.violations import hoeffding_bentkus_p_value
from amc.cascade.certificates.mean_tests import (
    SIGNED,
    Losses,
    Support,
    betting_upper,
    binomial_lower,
    binomial_p_value,
    binomial_upper,
    p_value,
    signed_p_value,
    signed_upper,
    upper,
)

DELTA = 0.1


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.05, 0.2])
def test_the_signed_test_rejects_true_hypotheses_with_probability_delta_at_most_over_all_outcomes(mean: float) -> None:
    """All outcomes of 24 examples are counted, for several true means and shares of ties."""
    count = 24
    outcomes = [(worse, better) for worse in range(count + 1) for better in range(count + 1 - worse)]
    rejected = [pair for pair in outcomes if signed_p_value(*pair, count, mean, DELTA) <= DELTA]
    rows = np.array([(worse, better, count - worse - better) for worse, better in rejected])
    sizes = []
    for true_mean in (mean, mean + 0.01, mean + 0.15):
        for differ in {abs(true_mean), abs(true_mean) + 0.02, 0.5, 1.0}:
            worse, better = (differ + true_mean) / 2, (differ - true_mean) / 2
            sizes.append(multinomial.pmf(rows, count, [worse, better, 1 - worse - better]).sum() if len(rows) else 0.0)
    assert max(sizes) <= DELTA


SUPPORTS = {
    "share": (Support.of(0, 1), [0.0, 1.0], [0.93, 0.07]),
    "rare gap": (Support.of(*SIGNED), [-1.0, 0.0, 1.0], [0.005, 0.975, 0.02]),
    "balanced gap": (Support.of(*SIGNED), [-1.0, 0.0, 1.0], [0.1, 0.79, 0.11]),
    "cost": (Support.of(1, 4, 10), [1.0, 4.0, 10.0], [0.7, 0.2, 0.1]),
    "score": (Support(-2, 2), [-1.5, -0.1, 0.0, 0.2, 1.9], [0.01, 0.2, 0.5, 0.25, 0.04]),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_true_mean_is_rejected_in_at_most_delta_of_draws_and_bounds_lie_near_it(name: str) -> None:
    """For every support, over 300 draws and up to their noise."""
    support, values, chances = SUPPORTS[name]
    draw = np.random.default_rng(1)
    draws, count = 300, 400
    samples = [draw.choice(values, count, p=chances) for _ in range(draws)]
    true = float(np.dot(values, chances))
    allowed = DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / draws)
    assert np.mean([p_value(sample, support, true, DELTA) <= DELTA for sample in samples]) <= allowed
    spread = np.sqrt(np.dot(np.square(values), chances) - true**2) / np.sqrt(count)
    some = [Losses(sample, support) for sample in samples[:15]]
    assert np.median([losses.upper(DELTA) - losses.mean for losses in some]) <= 2.2 * spread  # normal tail: 1.28
    assert np.median([losses.mean - losses.lower(DELTA) for losses in some]) <= 2.2 * spread


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.data())
def test_a_bound_is_where_the_test_begins_to_reject(count: int, data: st.DataObject) -> None:
    """At the bound the test rejects, and 0.001 below it does not."""
    worse = data.draw(st.integers(0, count))
    better = data.draw(st.integers(0, count - worse))
    bound = signed_upper(worse, better, count, DELTA)
    if bound < 1:
        assert signed_p_value(worse, better, count, bound, DELTA) <= DELTA
    if bound - 1e-3 > (worse - better) / count:
        assert signed_p_value(worse, better, count, bound - 1e-3, DELTA) > DELTA


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(-0.2, 0.5), st.floats(0, 0.3))
def test_p_values_fall_as_the_mean_grows(worse: int, better: int, mean: float, more: float) -> None:
    """A larger hypothesised mean is rejected no less, up to 0.01."""
    # Cells lie elsewhere at each mean, so each p-value is above the exact one by its own hair.
    assert (
        signed_p_value(worse, better, 200, mean + more, DELTA) <= signed_p_value(worse, better, 200, mean, DELTA) + 0.01
    )


def test_without_any_difference_the_gap_is_nearly_as_well_bounded_as_a_share_of_no_hits() -> None:
    """Within a tenth of the exact binomial bound."""
    assert binomial_upper(0, 500, DELTA) <= signed_upper(0, 0, 500, DELTA) <= 1.1 * binomial_upper(0, 500, DELTA)


def test_the_signed_test_is_sharper_than_betting_and_that_than_hoeffding_and_bentkus() -> None:
    """On one example of few differences."""
    losses = np.repeat([1.0, -1.0, 0.0], [60, 40, 1900])
    bet = 2 * betting_upper((losses + 1) / 2, DELTA) - 1
    assert signed_upper(60, 40, 2000, DELTA) < bet
    assert hoeffding_bentkus_p_value((losses + 1) / 2, (bet + 1) / 2) > DELTA


def test_a_bet_does_not_depend_on_examples_being_sorted_by_class() -> None:
    """Sorted data break the bound no more often than they should."""
    draw = np.random.default_rng(2)
    misses = sum(betting_upper(np.sort(draw.random(300)), DELTA) < 0.5 for _ in range(300))
    assert misses / 300 <= DELTA


def test_hoeffding_bentkus_is_valid_for_shares() -> None:
    """It rejects a true share in at most delta of draws."""
    draw = np.random.default_rng(3)
    samples = (draw.random((1000, 200)) < 0.1).astype(float)
    assert np.mean([hoeffding_bentkus_p_value(sample, 0.1) <= DELTA for sample in samples]) <= DELTA


def test_what_cannot_be_otherwise_needs_no_examples() -> None:
    """Hypotheses at the edges of the support are certain or impossible."""
    nothing = np.zeros(0)
    assert p_value(nothing, Support.of(0, 1), 1.0, DELTA) == 0.0  # a share is never above 1
    assert p_value(np.zeros(9), Support.of(0, 1), 0.0, DELTA) == 1.0  # and never known to be 0
    assert upper(nothing, Support.of(2, 5), DELTA) == 5.0
    assert upper(np.full(3, 7.0), Support.of(7), DELTA) == 7.0
    assert (binomial_lower(0, 10, DELTA), binomial_upper(10, 10, DELTA)) == (0.0, 1.0)


def test_the_binomial_test_and_bound_are_two_sides_of_one() -> None:
    """The p-value at the bound is delta."""
    assert binomial_p_value(7, 90, binomial_upper(7, 90, DELTA)) == pytest.approx(DELTA)

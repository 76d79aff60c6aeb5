import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_predictor import Ranks, SeerNetPredictor, conformal, cross_validate
from amc_predictor.examples import fold_of_each
from amc_predictor.ranks import kendall, spearman
from tests.predictor.measured import sigmoid_network

tied_pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=30)


@settings(deadline=None)
@given(tied_pairs)
def test_rank_correlations_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    """Kendall's tau-b and Spearman's rho equal scipy's, ties included, and are 0 where scipy says NaN."""
    stats = pytest.importorskip("scipy.stats")
    first, second = torch.tensor(pairs, dtype=torch.float64).unbind(dim=1)
    constant = len(set(first.tolist())) == 1 or len(set(second.tolist())) == 1
    for ours, theirs in ((kendall, stats.kendalltau), (spearman, stats.spearmanr)):
        wanted = 0.0 if constant else theirs(first.numpy(), second.numpy()).statistic
        assert math.isclose(ours(first, second), wanted, abs_tol=1e-12)


@settings(deadline=None)
@given(st.permutations(range(12)))
def test_rank_correlations_ignore_a_rising_map(order: list[int]) -> None:
    """A monotone map of either side changes neither correlation; a falling one turns the sign."""
    first, second = torch.arange(12.0), torch.tensor(order, dtype=torch.float32)
    for measure in (kendall, spearman):
        assert math.isclose(measure(first.exp(), second), measure(first, second), abs_tol=1e-12)
        assert math.isclose(measure(-first, second), -measure(first, second), abs_tol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 60), st.sampled_from([0.5, 0.8, 0.9]), st.integers(0, 2**16))
def test_conformal_quantile_covers_by_counting(count: int, coverage: float, seed: int) -> None:
    """The quantile leaves at least coverage (n + 1) of the n scores at or below it, or promises nothing."""
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    bound = conformal.quantile(scores, coverage)
    assert math.isinf(bound) or int((scores <= bound).sum()) >= coverage * (count + 1) - 1e-6
    assert math.isinf(bound) == (math.ceil(coverage * (count + 1) - 1e-9) > count)


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90])
def test_impossible_coverage_is_refused(coverage: float) -> None:
    """A coverage that is not strictly between 0 and 1 raises ValueError with the value."""
    with pytest.raises(ValueError, match=f"strictly between 0 and 1, got {coverage}"):
        conformal.quantile(torch.rand(20), coverage)


@settings(deadline=None)
@given(st.integers(2, 50), st.integers(2, 8), st.integers(0, 2**16))
def test_folds_are_even(count: int, folds: int, seed: int) -> None:
    """Fold sizes differ by at most one and no fold is empty."""
    sizes = fold_of_each(count, folds, seed).bincount()
    assert len(sizes) == min(folds, count) and int(sizes.max() - sizes.min()) <= 1


def test_no_policy_is_predicted_by_a_fit_that_saw_it() -> None:
    """Cross-validation fits once a fold, on exactly the policies outside it."""
    policies, accuracy = sigmoid_network(20, 3)
    seen = []

    class Listener:
        def fit(self, policies: torch.Tensor, accuracy: torch.Tensor) -> None:
            seen.append({tuple(row) for row in policies.tolist()})

        def predict(self, policies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert not seen[-1] & {tuple(row) for row in policies.tolist()}
            return policies.sum(dim=1) / 3, torch.zeros(len(policies))

    ranks = cross_validate(policies, accuracy, folds=4, make=Listener)
    assert [len(rows) for rows in seen] == [15] * 4
    torch.testing.assert_close(ranks.mean, policies.sum(dim=1) / 3)


def test_a_predictor_without_spread_gets_intervals_from_the_other_folds() -> None:
    """Zero std still gives intervals about the mean, of one width a fold."""
    policies, accuracy = sigmoid_network(60, 3)
    ranks = cross_validate(policies, accuracy, make=lambda: SeerNetPredictor(epochs=50))
    assert (ranks.low < ranks.high).all()
    assert 0.75 <= ranks.coverage_90 <= 1


def test_cross_validation_keeps_the_order_and_the_folds_of_its_seed() -> None:
    """Arrays come back in the order given, and a seed decides the folds."""
    policies, accuracy = sigmoid_network(20, 3)
    first, second, other = (
        cross_validate(policies, accuracy, seed=seed, make=lambda: SeerNetPredictor(epochs=5)) for seed in (0, 0, 1)
    )
    assert isinstance(first, Ranks)
    assert torch.equal(first.accuracy, accuracy)
    assert torch.equal(first.mean, second.mean) and torch.equal(first.fold, second.fold)
    assert not torch.equal(first.fold, other.fold)

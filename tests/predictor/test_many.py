"""Predictors of more policies than an exact process is fitted on."""

from functools import cache

import pytest
import torch

from amc_predictor import EnsemblePredictor, SensitivityCurves
from amc_predictor.ensemble import JUDGED, LARGEST
from amc_predictor.evidence import Evidence
from amc_predictor.features import Scaling
from amc_predictor.link import Link
from amc_predictor.process import Process, projections
from amc_predictor.ranks import kendall
from tests.predictor.measured import sigmoid_network

GROUPS = 6


def rough_network(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Policies (count, 6) of eight levels a group and accuracies in which every pair of levels matters by itself."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 8, (count, GROUPS), generator=generator)
    worth = torch.randn(GROUPS - 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score = sum(worth[pair, levels[:, pair], levels[:, pair + 1]] for pair in range(GROUPS - 1))
    assert isinstance(score, torch.Tensor)
    return (levels + 1).double() / 8, (score / 3 + 1).sigmoid()


@cache
def fitted(count: int) -> EnsemblePredictor:
    predictor = EnsemblePredictor(seed=0)
    predictor.fit(*(values[:count] for values in rough_network(4500)))
    return predictor


def test_more_policies_make_a_better_predictor() -> None:
    """Twelve times as many as an exact process is fitted on order new policies much better, by the networks' help."""
    policies, accuracy = (values[4000:] for values in rough_network(4500))
    few, many = (kendall(fitted(count).predict(policies)[0], accuracy) for count in (LARGEST, 4000))
    model = fitted(4000)._model
    assert model is not None
    alone = kendall(model.process.score(model.scaling(policies)), accuracy)
    assert many > few + 0.15 and many > alone + 0.02


def test_of_many_policies_all_are_judged_and_intervals_hold_what_they_promise() -> None:
    """Every policy is judged held out, and 90 % intervals hold 85 to 95 % of policies that were never seen."""
    ranks = fitted(4000).ranks
    assert len(ranks.accuracy) == 4000 and 0.88 <= ranks.coverage_90 <= 0.92
    policies, accuracy = (values[4000:] for values in rough_network(4500))
    low, high = fitted(4000).interval(policies)
    assert 0.85 <= float(((low <= accuracy) & (accuracy <= high)).double().mean()) <= 0.95


def test_a_predictor_of_many_policies_is_kept_and_repeated_exactly() -> None:
    """State and a second fit with the same seed give the same bits."""
    policies, _ = rough_network(50, seed=3)
    again = EnsemblePredictor(seed=0)
    again.fit(*(values[:4000] for values in rough_network(4500)))
    for other in (EnsemblePredictor.from_state(fitted(4000).state()), again):
        for mine, theirs in zip(fitted(4000).predict(policies), other.predict(policies), strict=True):
            assert torch.equal(mine, theirs)


def test_networks_that_do_not_help_stay_silent() -> None:
    """Labels that the process explains down to their noise leave the networks nothing to say."""
    predictor = EnsemblePredictor(seed=0)
    predictor.fit(*sigmoid_network(2 * LARGEST, 5))
    assert predictor._model is not None and not predictor._model.networks.outer.any()


@pytest.mark.parametrize("kind", ["equal labels", "labels of noise", "two policies", "dropped groups", "a sensitivity"])
def test_odd_studies_are_learned_without_nan(kind: str) -> None:
    """Labels that tell nothing, and policies that repeat or drop groups: finite answers with a spread above 0."""
    policies, accuracy = sigmoid_network(2 * LARGEST, 5)
    if kind == "equal labels":
        accuracy = torch.full_like(accuracy, 0.7)
    elif kind == "labels of noise":
        accuracy = accuracy[torch.randperm(len(accuracy), generator=torch.Generator().manual_seed(1))]
    elif kind == "two policies":
        policies = policies[torch.arange(len(policies)) % 2]
    elif kind == "dropped groups":
        policies = torch.where(policies < 0.4, 0.0, policies)
    told = SensitivityCurves.of([((0.25, 0.5), (1.0, 0.3))] * 5) if kind == "a sensitivity" else None
    predictor = EnsemblePredictor(seed=0, sensitivity=told)
    predictor.fit(policies, accuracy)
    mean, std = predictor.predict(sigmoid_network(40, 5, seed=2)[0])
    assert bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())
    if kind in ("dropped groups", "a sensitivity"):
        assert kendall(mean, sigmoid_network(40, 5, seed=2)[1]) > 0.7


def test_a_process_projected_on_all_its_policies_is_the_exact_one() -> None:
    """With every policy an anchor, scores and variances are those of the process itself."""
    policies, accuracy = sigmoid_network(80, 5)
    bits, link = torch.zeros(5, dtype=torch.bool), Link()
    features = Scaling.of(policies, bits)(policies)
    choice = Evidence(features[:JUDGED], bits).best(accuracy, [link])
    exact = Process.of(features, accuracy, bits, choice)
    everything = torch.ones(1, 80, dtype=torch.bool)
    (projected,), expected = projections(features, accuracy, everything, torch.arange(80), bits, choice)
    asked = Scaling.of(policies, bits)(sigmoid_network(30, 5, seed=1)[0])
    for mine, theirs in zip(projected.score_and_variance(asked), exact.score_and_variance(asked), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(expected[0], projected.score(features))

import torch

from amc_predictor import EnsemblePredictor
from amc_predictor.subset import LARGEST, telling


def drawn(count: int, groups: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    policies = torch.rand(count, groups, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    return policies, 0.2 + 0.6 * policies.mean(dim=1)


def test_few_policies_are_all_fitted_on() -> None:
    """Up to the largest number nothing is left out, nor put in another order."""
    policies, accuracy = drawn(LARGEST)
    assert telling(policies, accuracy, 0).tolist() == list(range(LARGEST))


def test_of_many_policies_the_best_are_kept_and_the_others_fill_the_space() -> None:
    """Half are the best ones; the rest lie farther apart than as many drawn at random; the same seed, the same ones."""
    policies, accuracy = drawn(3000)
    chosen = telling(policies, accuracy, 0, 100)
    assert len(chosen) == len(set(chosen.tolist())) == 100
    best = set(accuracy.argsort(descending=True)[:50].tolist())
    assert best <= set(chosen.tolist())
    rest = torch.tensor(sorted(set(chosen.tolist()) - best))
    gaps = [torch.pdist(policies[indices]).min() for indices in (rest, torch.arange(50))]
    assert gaps[0] > 2 * gaps[1]
    assert torch.equal(chosen, telling(policies, accuracy, 0, 100))


def test_a_predictor_of_many_policies_is_judged_on_those_it_was_fitted_on() -> None:
    """Four times the largest number: predictions order new policies, and the ranks are of the subset."""
    policies, accuracy = drawn(4 * LARGEST)
    predictor = EnsemblePredictor(members=2, seed=0)
    predictor.fit(policies, accuracy)
    assert len(predictor.ranks.accuracy) == LARGEST
    asked, truth = drawn(64)
    mean, _ = predictor.predict(asked)
    assert torch.corrcoef(torch.stack([mean, truth]))[0, 1] > 0.95

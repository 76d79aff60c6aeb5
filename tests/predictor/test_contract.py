import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_predictor import PREDICTORS, Predictor, SeerNetPredictor
from tests.predictor.measured import sigmoid_network

QUICK = {"ensemble": {"members": 4, "hidden": 8}, "mlp": {"members": 4, "hidden": 8}, "seernet": {"epochs": 50}}
every_predictor = pytest.mark.parametrize("name", sorted(QUICK))
of_the_product = pytest.mark.parametrize("name", sorted(PREDICTORS))


def quick(name: str, seed: int = 0) -> Predictor:
    return {**PREDICTORS, "seernet": SeerNetPredictor}[name](seed=seed, **QUICK[name])


@every_predictor
def test_shapes_and_dtype_follow_the_policies(name: str) -> None:
    """(b, d) in float32 gives finite mean and std of shape (b,) in float32, std never negative."""
    policies, accuracy = sigmoid_network(20, 5)
    predictor = quick(name)
    predictor.fit(policies, accuracy)
    mean, std = predictor.predict(torch.rand(7, 5))
    assert mean.shape == std.shape == (7,)
    assert mean.dtype == std.dtype == torch.float32
    assert mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()


@every_predictor
def test_same_seed_and_data_give_the_same_bits(name: str) -> None:
    """Two fits with one seed predict bit-identically."""
    policies, accuracy = sigmoid_network(24, 4)
    first, second = quick(name, seed=3), quick(name, seed=3)
    first.fit(policies, accuracy)
    second.fit(policies, accuracy)
    for one, other in zip(first.predict(policies), second.predict(policies), strict=True):
        assert torch.equal(one, other)


@every_predictor
def test_a_second_fit_forgets_the_first(name: str) -> None:
    """Fitting again on other data equals a fresh predictor fitted on that data."""
    fresh, used = quick(name), quick(name)
    used.fit(*sigmoid_network(12, 3, seed=1))
    policies, accuracy = sigmoid_network(16, 4, seed=2)
    for predictor in (fresh, used):
        predictor.fit(policies, accuracy)
    assert torch.equal(fresh.predict(policies)[0], used.predict(policies)[0])


@every_predictor
def test_the_global_random_state_is_not_touched(name: str) -> None:
    """Fitting and predicting draw nothing from torch's global generator."""
    before = torch.get_rng_state()
    predictor = quick(name)
    policies, accuracy = sigmoid_network(12, 3)
    predictor.fit(policies, accuracy)
    predictor.predict(policies)
    assert torch.equal(before, torch.get_rng_state())


@every_predictor
def test_fitting_works_where_gradients_are_off(name: str) -> None:
    """A caller's `no_grad` does not stop a predictor from learning."""
    policies, accuracy = sigmoid_network(12, 3)
    free, stopped = quick(name), quick(name)
    free.fit(policies, accuracy)
    with torch.no_grad():
        stopped.fit(policies, accuracy)
    assert torch.equal(free.predict(policies)[0], stopped.predict(policies)[0])


@every_predictor
def test_gradient_of_the_mean_is_its_finite_difference(name: str) -> None:
    """The derivative in the policies agrees with central differences in float64."""
    policies, accuracy = sigmoid_network(20, 4)
    predictor = quick(name)
    predictor.fit(policies, accuracy)
    point = policies[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: predictor.predict(x)[0], point, atol=1e-6)


@every_predictor
def test_dropped_groups_are_predicted_with_a_gradient(name: str) -> None:
    """Where groups keep nothing, mean, std and gradient are finite, whether such policies were measured or not."""
    policies, accuracy = sigmoid_network(24, 5)
    some = policies * (torch.rand(policies.shape, generator=torch.Generator().manual_seed(1)) > 0.2)
    for measured in (policies, some):
        predictor = quick(name)
        predictor.fit(measured, accuracy)
        for asked in (some, torch.zeros(2, 5, dtype=torch.float64)):
            point = asked.clone().requires_grad_()
            mean, std = predictor.predict(point)
            (gradient,) = torch.autograd.grad((mean + std).sum(), point)
            assert mean.isfinite().all() and std.isfinite().all() and gradient.isfinite().all()


@every_predictor
def test_labels_that_all_agree_are_predicted(name: str) -> None:
    """A constant label gives finite predictions, and no NaN."""
    policies, accuracy = sigmoid_network(16, 3)
    predictor = quick(name)
    predictor.fit(policies, torch.full_like(accuracy, 0.9))
    mean, std = predictor.predict(torch.rand(5, 3, dtype=torch.float64))
    assert mean.isfinite().all() and std.isfinite().all()


@every_predictor
@pytest.mark.parametrize(
    ("policies", "accuracy", "rule"),
    [
        (torch.full((8, 2), torch.nan), torch.rand(8), "policies must be kept fractions finite and in"),
        (torch.full((8, 2), 1.5), torch.rand(8), "policies must be kept fractions finite and in"),
        (torch.rand(8, 2), torch.full((8,), torch.inf), "accuracy must be a fraction, not a percentage, finite"),
        (torch.rand(8, 2), torch.full((8,), 93.0), "got values from 93 to 93"),
        (torch.rand(3, 2), torch.rand(3), "at least 4 measured policies, got 3"),
        (torch.rand(8, 2), torch.rand(7), r"one value a policy, \(8,\), got \(7,\)"),
        (torch.rand(8), torch.rand(8), r"shape \(b, d\), got \(8,\)"),
    ],
)
def test_bad_examples_are_refused(name: str, policies: torch.Tensor, accuracy: torch.Tensor, rule: str) -> None:
    """A fit on what cannot be learned from raises ValueError with the rule and the value got."""
    with pytest.raises(ValueError, match=rule):
        quick(name).fit(policies, accuracy)


@every_predictor
def test_bad_questions_are_refused(name: str) -> None:
    """Predicting at NaN or at another number of groups than was learned raises ValueError."""
    predictor = quick(name)
    predictor.fit(*sigmoid_network(12, 3))
    with pytest.raises(ValueError, match="finite"):
        predictor.predict(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match=r"shape \(b, 3\), got \(2, 4\)"):
        predictor.predict(torch.rand(2, 4))


@every_predictor
def test_an_unfitted_predictor_says_so(name: str) -> None:
    """Predicting before fitting raises RuntimeError."""
    with pytest.raises(RuntimeError, match="fit the predictor before"):
        quick(name).predict(torch.rand(2, 3))


@every_predictor
def test_no_policies_give_no_predictions(name: str) -> None:
    """A batch of none gives arrays of none."""
    predictor = quick(name)
    predictor.fit(*sigmoid_network(12, 3))
    mean, std = predictor.predict(torch.rand(0, 3))
    assert mean.shape == std.shape == (0,)


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 9), st.integers(1, 12), st.integers(0, 2**16), st.sampled_from([1, 2, 10]))
def test_few_policies_and_coarse_labels_stay_finite(count: int, groups: int, seed: int, levels: int) -> None:
    """Few policies, more groups than policies, labels at 0 and 1: mean and std stay finite, std positive."""
    generator = torch.Generator().manual_seed(seed)
    policies = torch.rand(count, groups, generator=generator)
    accuracy = (torch.rand(count, generator=generator) * levels).round() / levels
    predictor = quick("ensemble")
    predictor.fit(policies, accuracy)
    mean, std = predictor.predict(torch.rand(16, groups, generator=generator).round())
    assert mean.isfinite().all() and std.isfinite().all() and (std > 0).all()

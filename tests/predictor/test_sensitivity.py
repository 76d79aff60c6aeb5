import pytest
import torch

from amc_predictor import EnsemblePredictor, SensitivityCurves

CURVES = [([0.0, 0.25, 0.5], [0.8, 0.3, 0.1]), ([0.25], [0.4]), ([], [])]


def random_policies(count, groups, seed=0):
    return torch.rand(count, groups, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_curves_hold_at_their_knots_and_add_up():
    """At measured fractions a policy costs the sum of what was measured; the whole network costs nothing."""
    sensitivity = SensitivityCurves.of(CURVES)
    policies = torch.tensor([[0.25, 0.25, 0.1], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    assert sensitivity(policies).sum(1).tolist() == pytest.approx([0.7, 0.8, 0.0])


def test_harm_falls_as_more_is_kept_whatever_was_measured():
    """A group that was measured to do better thinner is taken not to matter there; what is negative is none."""
    sensitivity = SensitivityCurves.of([([0.1, 0.4, 0.7], [0.2, 0.5, -0.1])])
    harm = sensitivity(torch.linspace(0, 1, 101, dtype=torch.float64)[:, None])
    assert (harm.diff(dim=0) <= 1e-12).all() and harm.min() == 0 and harm.max() == pytest.approx(0.5)


def test_harm_is_differentiable():
    """The climb gets a gradient between the knots, equal to finite differences."""
    sensitivity = SensitivityCurves.of(CURVES)
    policies = (0.05 + 0.9 * random_policies(6, 3)).requires_grad_()
    assert torch.autograd.gradcheck(sensitivity, (policies,), atol=1e-5)


@pytest.mark.parametrize(
    "curves", [[], [([0.1], [float("nan")])], [([0.5, 0.1], [0.1, 0.2])], [([1.0], [0.1])], [([0.1, 0.2], [0.1])]]
)
def test_broken_curves_are_refused(curves):
    """No curve, no number, no order, a whole group, a missing loss."""
    with pytest.raises(ValueError, match="curve"):
        SensitivityCurves.of(curves)


def test_a_sensitivity_that_orders_policies_is_believed_from_few_labels():
    """Six labels and curves that tell the truth order unseen policies; six labels alone do not."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(12, generator=generator, dtype=torch.float64) ** 4
    curves = [([0.05, 0.2, 0.5], (weight * torch.tensor([3.0, 1.6, 0.7])).tolist()) for weight in weights]
    truth = SensitivityCurves.of(curves)

    def labels(policies):
        return 0.9 * (-(truth(policies).sum(1) ** 1.3)).exp()

    known, unseen = random_policies(6, 12, 1), random_policies(200, 12, 2)
    found = []
    for sensitivity in (truth, None):
        predictor = EnsemblePredictor(sensitivity=sensitivity)
        predictor.fit(known, labels(known))
        order = torch.stack([predictor.predict(unseen)[0].argsort().argsort(), labels(unseen).argsort().argsort()])
        found.append(float(order.double().corrcoef()[0, 1]))
    assert found[0] > 0.95 > found[1] + 0.2


def test_a_misleading_sensitivity_is_outvoted_by_labels():
    """With enough labels curves of the wrong groups do little harm."""
    weights = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    wrong = SensitivityCurves.of([([0.1, 0.5], [float(2 * weight), float(weight)]) for weight in weights.flip(0)])
    known, unseen = random_policies(80, 8, 1), random_policies(200, 8, 2)

    def labels(policies):
        return 0.9 * (-(weights * (1 - policies) ** 2).sum(1)).exp()

    errors = []
    for sensitivity in (wrong, None):
        predictor = EnsemblePredictor(sensitivity=sensitivity)
        predictor.fit(known, labels(known))
        errors.append(float((predictor.predict(unseen)[0] - labels(unseen)).square().mean().sqrt()))
    assert errors[0] < 1.3 * errors[1] + 0.002


def test_a_predictor_keeps_its_sensitivity():
    """State and back: the same predictions, from tensors alone."""
    predictor = EnsemblePredictor(sensitivity=SensitivityCurves.of(CURVES))
    known = random_policies(20, 3)
    predictor.fit(known, 0.2 + 0.6 * known.mean(1))
    again = EnsemblePredictor.from_state(predictor.state())
    for one, other in zip(predictor.predict(known), again.predict(known), strict=True):
        assert torch.equal(one, other)
    assert again.sensitivity is not None and torch.equal(again.sensitivity.loss, predictor.sensitivity.loss)


def test_a_sensitivity_must_fit_the_columns():
    """One curve a group, and none beside bits."""
    with pytest.raises(ValueError, match="3"):
        EnsemblePredictor(sensitivity=SensitivityCurves.of(CURVES)).fit(random_policies(9, 4), torch.rand(9))
    with pytest.raises(ValueError, match="bits"):
        EnsemblePredictor(bits=[0], sensitivity=SensitivityCurves.of(CURVES))

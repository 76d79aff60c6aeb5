import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from amc_predictor.curves import SensitivityCurves
from amc_predictor.evidence import Evidence
from amc_predictor.features import Scaling
from amc_predictor.kernel import Kernel, terms, terms_of
from amc_predictor.link import Link, candidate_links
from tests.predictor.measured import BITS, mixed_network, sigmoid_network


def mixed_features(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    policies, _ = mixed_network(200)
    bits = torch.zeros(20, dtype=torch.bool)
    bits[list(BITS)] = True
    policies = policies[:count].clone()
    policies[::3, 1] = 0.0
    return Scaling.of(policies, bits)(policies), bits


def told_features(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    policies, _ = sigmoid_network(count, 5)
    policies[::3, 1] = 0.0
    sensitivity = SensitivityCurves.of([([0.0, 0.3], [2.0 * group, group]) for group in range(5)])
    bits = torch.zeros(5, dtype=torch.bool)
    return Scaling.of(policies, bits, sensitivity)(policies), bits


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**16), st.booleans())
def test_the_kernel_is_the_sum_of_its_terms(seed: int, is_told: bool) -> None:
    """At any amplitudes, some of them zero, it is their weighted sum, its diagonal what `own` says, and symmetric."""
    features, bits = told_features() if is_told else mixed_features()
    amplitudes = torch.rand(terms_of(bits, is_told), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kernel = Kernel(bits, amplitudes * (amplitudes > 0.3))
    wanted = torch.einsum("t,tij->ij", kernel.amplitudes, terms(features, bits))
    torch.testing.assert_close(kernel(features, features), wanted)
    torch.testing.assert_close(kernel.own(features), wanted.diagonal())
    assert float(torch.linalg.eigvalsh(wanted).min()) > -1e-8


def test_the_slope_of_the_evidence_is_its_finite_difference() -> None:
    """What the search for variances climbs is what it measures."""
    features, bits = mixed_features()
    _, accuracy = mixed_network(200)
    evidence = Evidence(features, bits)
    labels = (accuracy[:30] - accuracy[:30].mean()) / accuracy[:30].std()
    start = evidence.prior + np.linspace(-1, 1, len(evidence.prior))
    off = check_grad(lambda x: evidence._loss(x, labels)[0], lambda x: evidence._loss(x, labels)[1], start)
    assert off < 1e-3


def test_the_link_that_made_the_labels_is_the_more_probable() -> None:
    """Labels that saturate at both ends speak for a logit, their own scores for none."""
    policies, accuracy = sigmoid_network(100, 8)
    evidence = Evidence(Scaling.of(policies, bits := torch.zeros(8, dtype=torch.bool))(policies), bits)
    logit = Link("logit", 0.09, 0.95)
    found = [evidence.best(accuracy, [link]).evidence for link in (Link(), logit)]
    assert found[1] > found[0] + 5
    scores = logit.score(accuracy)
    straight = 0.5 + 0.1 * (scores - scores.mean()) / scores.std()
    assert evidence.best(straight, candidate_links(straight)).link.kind == "identity"


@pytest.mark.parametrize("unit", [1e-3, 1.0])
def test_the_choice_does_not_hang_on_the_unit_of_the_score(unit: float) -> None:
    """Labels a thousand times closer together give amplitudes and noise a million times smaller."""
    policies, accuracy = sigmoid_network(60, 5)
    evidence = Evidence(Scaling.of(policies, bits := torch.zeros(5, dtype=torch.bool))(policies), bits)
    whole, small = (evidence.best(0.5 + size * (accuracy - 0.5), [Link()]) for size in (1.0, unit))
    torch.testing.assert_close(small.amplitudes[:-1], whole.amplitudes[:-1] * unit**2, rtol=1e-3, atol=1e-9)
    assert small.noise == pytest.approx(whole.noise * unit**2, rel=1e-3)

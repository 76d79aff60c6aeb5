"""The study of risk control shows what it is for, on a made-up cascade; shifts disturb inputs and nothing else."""

from __future__ import annotations

import json

import pytest
import torch

from amc.bench.cascade.shift import Shifted, blurred
from amc.bench.cascade.violations import NAIVE, OURS, RULES, default_epsilons, risk_study, risk_text
from amc.cascade.certificates.risk_control import threshold_ladder
from amc.cascade.rules.scorers import FeatureScorer
from amc.zoo.data.splits import MemorySplit
from tests.cascade.population import ADDED, population

DELTA = 0.1


def test_learn_then_test_keeps_its_promise_where_the_naive_rule_does_not_and_a_shift_is_flagged() -> None:
    """On a population where both can be counted."""
    rules = threshold_ladder(population(1000, 0), FeatureScorer("confidence"), 30)
    shifted = {"noise": population(4000, 1, noise=2.5)}
    found = risk_study(
        population(4000, 1), ADDED, rules, epsilons={"gap": 0.05}, count=400, resamples=100, shifted=shifted
    )
    reported = json.loads(json.dumps(found))["risks"]["gap"]
    assert set(reported["rules"]) == set(RULES)
    assert reported["rules"][OURS]["broken"]["low"] <= DELTA < reported["rules"][NAIVE]["broken"]["low"]
    assert (
        reported["rules"][OURS]["broken"]["share"]
        <= reported["rules"]["learn-then-test, first failing"]["broken"]["share"]
    )
    assert reported["shifts"]["none"]["broken"] == reported["rules"][OURS]["broken"]
    assert reported["shifts"]["none"]["flagged"]["share"] <= 0.05
    assert (
        reported["shifts"]["noise"]["broken"]["low"] > DELTA and reported["shifts"]["noise"]["flagged"]["share"] > 0.9
    )
    text = risk_text(found)
    assert "gap: at most 0.0500" in text and all(len(line) <= 120 for line in text.splitlines())


def test_epsilons_are_set_by_the_last_stage() -> None:
    """The default allows one point more error than it has."""
    records = population(500, 2)
    assert default_epsilons(records)["accuracy"] == pytest.approx(1.01 - float(records.accuracies[-1]))


def test_a_shifted_split_is_the_same_each_time_and_keeps_labels() -> None:
    """Noise and blur are fixed, and have a digest of their own."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 9, 9), generator=draw, dtype=torch.uint8)
    split = MemorySplit(images, torch.arange(30), (0.5,), (0.5,))
    for shifted in (Shifted(split, noise=0.5), Shifted(split, blur=1.0)):
        first, again = list(shifted.batches(10)), list(shifted.batches(10))
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
        assert torch.cat([labels for _, labels in first]).tolist() == list(range(30))
        assert not torch.equal(first[0][0], next(iter(split.batches(10)))[0]) and shifted.digest != split.digest


@pytest.mark.parametrize("shape", [(2, 3, 12), (2, 1, 8, 10)])
def test_a_blur_leaves_flat_inputs_and_shrinks_differences(shape: tuple[int, ...]) -> None:
    """Zero blur hands the input back."""
    flat, rough = torch.full(shape, 0.7), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(blurred(flat, 1.5), flat, atol=1e-6)
    assert blurred(rough, 1.5).std() < 0.7 * rough.std() and blurred(rough, 0.0) is rough

import os
import subprocess
import sys
from functools import cache
from itertools import pairwise

import pytest
import torch

from amc_predictor import EnsemblePredictor, Ranks, SeerNetPredictor, cross_validate
from amc_predictor.ranks import kendall
from tests.predictor.measured import seernet, sigmoid_network


@cache
def fitted() -> EnsemblePredictor:
    """The ensemble on the first 320 of SeerNet's 400 ResNet20 policies."""
    policies, accuracy = seernet("resnet20")
    predictor = EnsemblePredictor()
    predictor.fit(policies[:320], accuracy[:320])
    return predictor


@cache
def judged(network: str) -> Ranks:
    return cross_validate(*seernet(network))


@pytest.mark.parametrize(("network", "least"), [("resnet20", 0.74), ("resnet18", 0.58)])
def test_held_out_policies_are_ordered(network: str, least: float) -> None:
    """Five-fold Kendall on SeerNet's measurements, 0.77 and 0.63 when this was written, stays above its bound."""
    assert judged(network).kendall > least


@pytest.mark.parametrize("network", ["resnet20", "resnet18"])
def test_held_out_coverage_is_what_was_promised(network: str) -> None:
    """The 90 % interval holds 80 to 99 % of held-out labels, and the held-out z-scores have a size near 1."""
    ranks = judged(network)
    assert 0.8 <= ranks.coverage_90 <= 0.99
    size = float(((ranks.accuracy - ranks.mean) / ranks.std).square().mean().sqrt())
    assert 0.75 <= size <= 1.35


def test_the_published_predictor_is_beaten() -> None:
    """On 64 ResNet20 policies ours orders the other 336 better than SeerNet's network does."""
    policies, accuracy = seernet("resnet20")
    ours, theirs = EnsemblePredictor(), SeerNetPredictor(epochs=1000)
    taus = []
    for predictor in (ours, theirs):
        predictor.fit(policies[:64], accuracy[:64])
        taus.append(kendall(predictor.predict(policies[64:])[0], accuracy[64:]))
    assert taus[0] > max(0.6, taus[1])


def test_labels_near_floor_and_ceiling_are_learned() -> None:
    """Accuracy that saturates at chance and at the dense accuracy is predicted to two points from 64 policies."""
    policies, accuracy = sigmoid_network(564, 12)
    predictor = EnsemblePredictor()
    predictor.fit(policies[:64], accuracy[:64])
    mean, _ = predictor.predict(policies[64:])
    assert float((mean - accuracy[64:]).square().mean().sqrt()) < 0.02


def test_ranks_of_the_fit_are_close_to_honest_ones() -> None:
    """The judgement a fit makes of itself agrees with cross-validation from outside."""
    policies, accuracy = seernet("resnet18")
    predictor = EnsemblePredictor()
    predictor.fit(policies, accuracy)
    assert abs(predictor.ranks.kendall - judged("resnet18").kendall) < 0.04
    assert abs(predictor.ranks.coverage_90 - 0.9) < 0.05


def test_std_grows_away_from_the_data() -> None:
    """Along rays from the measured policies' centre std never falls, and at the corners it beats every measured one."""
    policies, _ = seernet("resnet20")
    predictor = fitted()
    center = policies.mean(dim=0)
    near = predictor.predict(policies[:320])[1]
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 2, (64, 36), generator=generator, dtype=torch.float64)
    corners[0], corners[1] = 0, 1
    rays = [predictor.predict(center + share * (corners - center))[1] for share in (0.25, 0.5, 0.75, 1.0)]
    assert all((further > nearer).all() for nearer, further in pairwise(rays))
    assert float(rays[-1].min()) > float(near.max())


def test_dropping_what_was_never_dropped_is_uncertain() -> None:
    """Where no measured policy drops a group, one that does has a wider interval than its thinnest and all measured."""
    policies, accuracy = sigmoid_network(80, 8)
    predictor = EnsemblePredictor()
    predictor.fit(policies, accuracy)
    thin, dropped = (policies[:8].clone().fill_diagonal_(value) for value in (0.05, 0.0))
    std = predictor.predict(dropped)[1]
    assert (std > predictor.predict(thin)[1]).all()
    assert float(std.min()) > float(predictor.predict(policies)[1].max())


def test_a_drop_that_does_no_harm_is_learned() -> None:
    """Of groups that hurt when thin, those that do not when dropped are told from those that do, in few policies."""
    policies, _ = sigmoid_network(420, 10)
    generator = torch.Generator().manual_seed(3)
    policies[:, 1::2] *= torch.rand(420, 5, generator=generator) > 0.15
    harm = torch.tensor([[0.05, 0.002] * 5], dtype=torch.float64)  # groups 1, 5, 9 do little harm when dropped
    harm[:, 3::4] = 0.1
    lost = torch.where(policies > 0, 0.2 * (-4 * policies).exp(), harm).sum(dim=1)
    accuracy = 0.95 - lost + 0.002 * torch.randn(420, generator=generator, dtype=torch.float64)
    predictor = EnsemblePredictor()
    predictor.fit(policies[:100], accuracy[:100])
    assert kendall(predictor.predict(policies[100:])[0], accuracy[100:]) > 0.85
    full = policies[100:101].clone().clamp_min(0.3).repeat(10, 1)
    order = predictor.predict(full.fill_diagonal_(0.0))[0][1::2]
    assert float(order[[0, 2, 4]].min()) > float(order[[1, 3]].max())


def test_std_shrinks_with_more_data() -> None:
    """Four times the policies leave less spread on the rest."""
    policies, accuracy = seernet("resnet20")
    few = EnsemblePredictor()
    few.fit(policies[:80], accuracy[:80])
    rest = policies[320:]
    assert float(few.predict(rest)[1].mean()) > float(fitted().predict(rest)[1].mean())


def test_gradient_of_the_std_is_its_finite_difference() -> None:
    """An ascent on a lower confidence bound can trust the derivative of mean and of std."""
    points = 0.2 + 0.6 * torch.rand(3, 36, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(fitted().predict, points.requires_grad_(), atol=1e-6)


def test_rows_are_independent() -> None:
    """A policy's prediction does not depend on the others of its batch."""
    policies, _ = seernet("resnet20")
    together = fitted().predict(policies[:5])[0]
    alone = torch.cat([fitted().predict(row[None])[0] for row in policies[:5]])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_labels_in_any_order_are_learned_alike() -> None:
    """Sorted labels do not fool the folds."""
    policies, accuracy = sigmoid_network(80, 6)
    order = accuracy.argsort()
    predictor = EnsemblePredictor()
    predictor.fit(policies[order], accuracy[order])
    assert predictor.ranks.kendall > 0.8


def test_state_round_trip_is_exact() -> None:
    """Tensors out, tensors in: the same predictions, intervals and ranks to the last bit."""
    policies, _ = seernet("resnet20")
    state = fitted().state()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    again = EnsemblePredictor.from_state({name: tensor.clone() for name, tensor in state.items()})
    assert again.ranks.kendall == fitted().ranks.kendall
    for ask in ("predict", "interval"):
        for one, other in zip(getattr(fitted(), ask)(policies), getattr(again, ask)(policies), strict=True):
            assert torch.equal(one, other)


def test_a_foreign_state_is_refused() -> None:
    """Tensors of something else raise ValueError with the names got, and so do features of another number."""
    state = fitted().state()
    with pytest.raises(ValueError, match="36 groups has 144 features, got 108"):
        EnsemblePredictor.from_state(state | {"model.center": state["model.center"][:108]})
    with pytest.raises(ValueError, match=r"got \['weight'\]"):
        EnsemblePredictor.from_state({"weight": torch.zeros(1)})


def test_intervals_nest_and_stay_in_range() -> None:
    """More coverage means a wider interval, about the mean, within [0, 1]."""
    policies, _ = seernet("resnet20")
    mean, _ = fitted().predict(policies)
    (low_50, high_50), (low_95, high_95) = (fitted().interval(policies, share) for share in (0.5, 0.95))
    assert (0 <= low_95).all() and (low_95 <= low_50).all() and (low_50 <= mean).all()
    assert (mean <= high_50).all() and (high_50 <= high_95).all() and (high_95 <= 1).all()


def test_eight_policies_promise_nothing_at_ninety_percent() -> None:
    """With fewer than nine policies the 90 % interval is the whole of [0, 1]."""
    policies, accuracy = sigmoid_network(8, 3)
    predictor = EnsemblePredictor()
    predictor.fit(policies, accuracy)
    low, high = predictor.interval(policies)
    assert (low == 0).all() and (high == 1).all()


@pytest.mark.parametrize("settings", [{"members": 0}, {"hidden": 0}, {"folds": 1}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    """Ensembles of nothing and calibration on one fold raise ValueError with the value."""
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.*{next(iter(settings.values()))}"):
        EnsemblePredictor(**settings)


def test_the_package_imports_nothing_of_the_product() -> None:
    """A fresh process that imports amc_predictor has loaded neither amc nor amc_search."""
    program = "import sys, amc_predictor; print([m for m in sys.modules if m.split('.')[0] in ('amc', 'amc_search')])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"

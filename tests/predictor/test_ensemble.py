import os
import subprocess
import sys
from functools import cache
from itertools import pairwise

import pytest
import torch

from amc_predictor import EnsemblePredictor, Ranks, SeerNetPredictor, Training, cross_validate
from amc_predictor.ranks import kendall
from tests.predictor.measured import BITS, LAYERS, mixed_network, sigmoid_network


@cache
def fitted() -> EnsemblePredictor:
    """The ensemble on 160 policies of kept fractions and bits."""
    predictor = EnsemblePredictor(bits=BITS)
    predictor.fit(*(values[:160] for values in mixed_network(200)))
    return predictor


@cache
def judged() -> Ranks:
    return cross_validate(*mixed_network(200), make=lambda: EnsemblePredictor(bits=BITS), bits=BITS)


def test_held_out_policies_are_ordered() -> None:
    """Five-fold Kendall on fractions and bits, 0.92 when this was written, is near what the noise leaves."""
    assert judged().kendall > 0.88


def test_held_out_coverage_is_what_was_promised() -> None:
    """The 90 % interval holds 80 to 99 % of held-out labels, and the held-out z-scores have a size near 1."""
    ranks = judged()
    assert 0.8 <= ranks.coverage_90 <= 0.99
    size = float(((ranks.accuracy - ranks.mean) / ranks.std).square().mean().sqrt())
    assert 0.75 <= size <= 1.35


def test_the_published_predictor_is_beaten() -> None:
    """On 64 policies ours orders the other 136 better than SeerNet's network does."""
    policies, accuracy = mixed_network(200)
    unit = policies.clone()
    unit[:, LAYERS:] /= 5
    ours, theirs = EnsemblePredictor(bits=BITS), SeerNetPredictor(epochs=1000)
    taus = []
    for predictor, rows in ((ours, policies), (theirs, unit)):
        predictor.fit(rows[:64], accuracy[:64])
        taus.append(kendall(predictor.predict(rows[64:])[0], accuracy[64:]))
    assert taus[0] > max(0.8, taus[1] + 0.1)


def test_a_dozen_policies_tell_what_columns_have_in_common() -> None:
    """With fewer policies than columns, that keeping more and more bits help is seen: new policies are ordered."""
    policies, accuracy = mixed_network(200)
    predictor = EnsemblePredictor(bits=BITS)
    predictor.fit(policies[:12], accuracy[:12])
    assert kendall(predictor.predict(policies[12:])[0], accuracy[12:]) > 0.5


def test_bits_told_as_bits_are_ordered_better() -> None:
    """That a column is bits is worth more than bits over eight told as if they were kept fractions."""
    policies, accuracy = mixed_network(200)
    unit = policies.clone()
    unit[:, LAYERS:] /= 8
    taus = []
    for rows, bits in ((policies, BITS), (unit, ())):
        predictor = EnsemblePredictor(bits=bits)
        predictor.fit(rows[:40], accuracy[:40])
        taus.append(kendall(predictor.predict(rows[40:])[0], accuracy[40:]))
    assert taus[0] > taus[1]


def test_columns_may_stand_in_any_order() -> None:
    """Kinds of columns belong to their numbers: shuffled columns give the same predictions, but for ties of trees."""
    policies, accuracy = mixed_network(60)
    order = torch.randperm(policies.shape[1], generator=torch.Generator().manual_seed(0))
    silent = Training(steps=0)  # networks start from weights drawn column by column
    plain = EnsemblePredictor(bits=BITS, training=silent)
    mixed = EnsemblePredictor(bits=[i for i, column in enumerate(order.tolist()) if column in BITS], training=silent)
    plain.fit(policies, accuracy)
    mixed.fit(policies[:, order], accuracy)
    torch.testing.assert_close(mixed.predict(policies[:, order])[0], plain.predict(policies)[0], rtol=0, atol=5e-4)


def test_columns_of_bits_are_checked() -> None:
    """Bits below 1 or above 32, and numbers of columns that are not there, raise ValueError with the value."""
    policies, accuracy = mixed_network(60)
    for wrong in (0.5, 64.0):
        rows = policies.clone()
        rows[0, LAYERS] = wrong
        with pytest.raises(ValueError, match=rf"bits must be finite and in \[1, 32\].* {wrong:g}"):
            EnsemblePredictor(bits=BITS).fit(rows, accuracy)
    with pytest.raises(ValueError, match="columns 0 to 19 of the policies, got 20"):
        EnsemblePredictor(bits=[20]).fit(policies, accuracy)


def test_what_two_groups_do_together_is_learned() -> None:
    """Harm that only a product of two groups tells is ordered far better than by chance."""
    generator = torch.Generator().manual_seed(5)
    policies = 0.2 + 0.8 * torch.rand(500, 6, generator=generator, dtype=torch.float64)
    thin = policies - policies.mean(dim=0)
    accuracy = 0.8 + thin[:, 0] * thin[:, 1] + 0.5 * thin[:, 2] * thin[:, 3]
    predictor = EnsemblePredictor()
    predictor.fit(policies[:120], accuracy[:120])
    assert kendall(predictor.predict(policies[120:])[0], accuracy[120:]) > 0.7


def test_what_a_single_level_does_is_learned() -> None:
    """Where each level of a group has a worth of its own, beside the trend, new policies are ordered by it."""
    generator = torch.Generator().manual_seed(5)
    levels = torch.randint(1, 9, (500, 8), generator=generator)
    worth = 0.02 * torch.randn(8, 9, generator=generator, dtype=torch.float64)
    policies = levels.double() / 8
    accuracy = 0.5 + 0.02 * policies.sum(dim=1) + worth[torch.arange(8), levels].sum(dim=1)
    predictor = EnsemblePredictor()
    predictor.fit(policies[:120], accuracy[:120])
    assert kendall(predictor.predict(policies[120:])[0], accuracy[120:]) > 0.6


def test_labels_near_floor_and_ceiling_are_learned() -> None:
    """Accuracy that saturates at chance and at the dense accuracy is predicted to two points from 64 policies."""
    policies, accuracy = sigmoid_network(564, 12)
    predictor = EnsemblePredictor()
    predictor.fit(policies[:64], accuracy[:64])
    mean, _ = predictor.predict(policies[64:])
    assert float((mean - accuracy[64:]).square().mean().sqrt()) < 0.02


def test_ranks_of_the_fit_are_close_to_honest_ones() -> None:
    """The judgement a fit makes of itself agrees with cross-validation from outside."""
    predictor = EnsemblePredictor(bits=BITS)
    predictor.fit(*mixed_network(200))
    assert abs(predictor.ranks.kendall - judged().kendall) < 0.04
    assert abs(predictor.ranks.coverage_90 - 0.9) < 0.05


def test_std_grows_away_from_the_data() -> None:
    """Along rays from the measured policies' centre std never falls, and at the corners it beats every measured one."""
    policies, _ = sigmoid_network(120, 12)
    noise = 0.002 * torch.randn(120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    accuracy = 0.9 - 0.3 * (-3 * policies).exp().mean(dim=1) + noise
    predictor = EnsemblePredictor()
    predictor.fit(policies, accuracy)
    center = policies.mean(dim=0)
    near = predictor.predict(policies)[1]
    corners = torch.randint(0, 2, (64, 12), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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
    policies, accuracy = mixed_network(200)
    few = EnsemblePredictor(bits=BITS)
    few.fit(policies[:40], accuracy[:40])
    rest = policies[160:]
    assert float(few.predict(rest)[1].mean()) > float(fitted().predict(rest)[1].mean())


def test_gradient_of_the_std_is_its_finite_difference() -> None:
    """An ascent on a lower confidence bound can trust the derivative of mean and of std."""
    points = 0.2 + 0.6 * torch.rand(3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points[:, LAYERS:] = 1 + 5 * points[:, LAYERS:]
    assert torch.autograd.gradcheck(fitted().predict, points.requires_grad_(), atol=1e-6)


def test_rows_are_independent() -> None:
    """A policy's prediction does not depend on the others of its batch."""
    policies, _ = mixed_network(200)
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
    policies, _ = mixed_network(200)
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
    with pytest.raises(ValueError, match="20 groups has 80 features, got 60"):
        EnsemblePredictor.from_state(state | {"model.center": state["model.center"][:60]})
    with pytest.raises(ValueError, match="11 amplitudes, got 9"):
        EnsemblePredictor.from_state(state | {"model.amplitudes": state["model.amplitudes"][:9]})
    with pytest.raises(ValueError, match=r"got \['weight'\]"):
        EnsemblePredictor.from_state({"weight": torch.zeros(1)})


def test_intervals_nest_and_stay_in_range() -> None:
    """More coverage means a wider interval, about the mean, within [0, 1]."""
    policies, _ = mixed_network(200)
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

"""What all predictors of the product share: folds, calibrated spread, intervals, ranks, and a state of tensors.

Notation in this package
n: measured policies. b: policies predicted. d: columns, one a group, or more where bits are chosen too.
m: networks of an ensemble. K: folds.
x: policies (b, d): kept fractions in [0, 1], bits in [1, 32].
F: features (b, 4d), or (b, 5d + 2) with sensitivity curves, scaled on the measured policies: `amc_predictor.features`.
y: accuracy in [0, 1], the objective value. z: score, the scale of the link on which accuracy behaves;
   y = link.accuracy(z).
f: mean of the process, (b,) in score. g_j: network j of m, (b,) in score. mean = link.accuracy(f + mean_j g_j).
h: variance of f (b,), in score squared; grows with the distance from the measured policies.
sigma: noise, in score, by the likelihood of the measured values.
v: h + var_j g_j (b,), what is not known because too little was measured. sigma^2: what no model would know.
s: slope of the link, accuracy per score. std^2 = scale^2 (s^2 sigma^2 + max(s, s_typical)^2 v).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from amc_predictor import conformal
from amc_predictor.curves import SensitivityCurves
from amc_predictor.examples import checked_examples, checked_policies, fold_of_each
from amc_predictor.link import Link
from amc_predictor.model import Model
from amc_predictor.networks import Networks, Training, train
from amc_predictor.ranks import Ranks
from amc_predictor.stacking import stacked

SCALE_FLOOR = 0.1  # a spread is never cut to less than a tenth: few held-out errors may all be small by luck
MEDIAN_OF_NORMAL = 0.6745  # of |z|; a median, since one degenerate policy far off would widen every interval
NOISE_FLOOR = 1e-4  # of accuracy: values that happen to agree are no proof of certainty
RANK_TENSORS = ("accuracy", "mean", "std", "low", "high", "fold")


class CalibratedPredictor(ABC):
    """Learns a model of everything and one of each fold's rest, by which it is stacked, calibrated and judged.

    The folds' predictions choose the stopping step of the networks and the shares of the members, scale the standard
    deviation, give the conformal scores, and are kept as `ranks`. Same seed and same data give bit-identical
    predictions; the global random state is not touched.

    Args:
        members: networks in the ensemble.
        hidden: units of each.
        training: settings of the networks; None: the predictor's own.
        seed: draws folds, initial weights and bootstraps.
        folds: at most this many for calibration; fewer where n is smaller.
        bits: numbers of the columns that are bits, each from 1 to 32; all others are kept fractions.
        sensitivity: what is known of the groups before anything is measured; not where there are bits.

    Attributes:
        ranks: out-of-fold judgement of the last fit. Link, stopping step and shares were chosen with all values in
            view, so it is slightly kind; `cross_validate` is not.
    """

    ranks: Ranks

    default_training: ClassVar[Training] = Training()

    def __init__(
        self,
        members: int = 8,
        hidden: int = 32,
        training: Training | None = None,
        *,
        seed: int = 0,
        folds: int = 5,
        bits: Sequence[int] = (),
        sensitivity: SensitivityCurves | None = None,
    ) -> None:
        if members < 1 or hidden < 1:
            raise ValueError(f"members and hidden must be at least 1, got {members=}, {hidden=}")
        if folds < 2:
            raise ValueError(f"folds must be at least 2, got {folds}")
        if bits and sensitivity:
            raise ValueError(f"a sensitivity is of kept fractions, so no column may be bits, got bits={tuple(bits)}")
        self.members, self.hidden, self.training = members, hidden, training or self.default_training
        self.seed, self.folds, self.bits, self.sensitivity = seed, folds, tuple(bits), sensitivity
        self._model: Model | None = None

    @abstractmethod
    def _models(self, inputs: Tensor, values: Tensor, fold: Tensor) -> list[Model]:
        """One model a fold, which has not seen it, then the model of everything."""

    def _trained(
        self, inputs: Tensor, values: Tensor, offset: Tensor, seen: Tensor, link: Link, unit: float = 1.0
    ) -> list[Networks]:
        """The networks of all folds, and of everything, trained at once: (K + 1) times `members` of them."""
        generator = torch.Generator().manual_seed(self.seed)
        weight, held = bootstraps(seen, self.members, generator)
        trained = train(
            Networks.untrained(len(weight), inputs.shape[1], self.hidden, generator),
            inputs=inputs.float(),
            offset=offset.float().repeat_interleave(self.members, dim=0),
            accuracy=values.float(),
            weight=weight,
            held=held,
            link=link,
            training=self.training,
            generator=generator,
            unit=unit,
        )
        return [trained.some(slice(index * self.members, (index + 1) * self.members)) for index in range(len(seen))]

    def fit(self, policies: Tensor, accuracy: Tensor) -> None:
        """Learn from policies (n, d) and accuracies (n,) in [0, 1]; forgets earlier fits.

        Memory grows with n, seconds too: 10,000 policies of 60 groups take a few.

        Raises:
            ValueError: fewer than 4 policies, shapes that do not match, values not finite or
                outside [0, 1], or [1, 32] for bits.
        """
        inputs, values = checked_examples(policies, accuracy, self.bits)
        curves, groups = self.sensitivity, inputs.shape[1]
        if curves is not None and len(curves.kept) != groups:
            raise ValueError(f"the sensitivity must have a curve for each of {groups} groups, got {len(curves.kept)}")
        fold = fold_of_each(len(values), self.folds, self.seed)
        with torch.no_grad():
            *apart, whole = self._models(inputs, values, fold)
            held_out = torch.empty(3, len(values), dtype=torch.float64)
            for number, model in enumerate(apart):
                held = fold == number
                held_out[:, held] = model.members(inputs[held])
            shares = stacked(held_out, values, has_trees=bool(len(whole.trees.column)))
            mean, std = torch.empty_like(values), torch.empty_like(values)
            for number, model in enumerate(apart):
                held = fold == number
                mean[held], std[held] = replace(model, shares=shares)(inputs[held])
            scale = (((values - mean) / std).abs().median() / MEDIAN_OF_NORMAL).clamp_min(SCALE_FLOOR)
            std = std * scale
            low, high = conformal.cross_interval(mean, std, values, fold, 0.9)
        self._model = replace(whole, scale=scale, shares=shares)
        self.ranks = Ranks.of(values, mean, std, low, high, fold)

    def predict(self, policies: Tensor) -> tuple[Tensor, Tensor]:
        """Policies (b, d) -> mean (b,), standard deviation (b,) > 0, in the policies' dtype.

        The standard deviation is that of a new measurement about the mean: noise, and what too few policies left
        unknown, scaled to the size of the out-of-fold errors. Both are differentiable in the policies.
        """
        mean, std = self._fitted()(checked_policies(policies, self._fitted().groups, self.bits))
        return mean.to(policies.dtype), std.to(policies.dtype)

    def interval(self, policies: Tensor, coverage: float = 0.9) -> tuple[Tensor, Tensor]:
        """Policies (b, d) -> low (b,), high (b,), which hold a new measurement about `coverage` of the time.

        Holds for policies drawn like the measured ones; for policies that an ascent chose it is a guide. The ends lie
        in [0, 1]; fewer measured policies than the coverage needs (9 for 0.9) give the whole of [0, 1].
        """
        mean, std = self._fitted()(checked_policies(policies, self._fitted().groups, self.bits))
        scores = (self.ranks.accuracy - self.ranks.mean).abs() / self.ranks.std
        low, high = conformal.interval(mean, std, scores, coverage)
        return low.to(policies.dtype), high.to(policies.dtype)

    def state(self) -> dict[str, Tensor]:
        """All that `from_state` needs, as tensors: predictions, intervals and ranks survive exactly."""
        tensors = {f"ranks.{name}": getattr(self.ranks, name) for name in RANK_TENSORS}
        return tensors | {f"model.{name}": tensor for name, tensor in self._fitted().tensors().items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted predictor that `state` came from; `fit` on it starts afresh with the default settings.

        Raises:
            ValueError: tensors are missing, foreign, or of other shapes than belong together.
        """
        tensors = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
        if set(RANK_TENSORS) - {name.removeprefix("ranks.") for name in state}:
            raise ValueError(f"a predictor's state has tensors model.* and ranks.*, got {sorted(state)}")
        model = Model.of_tensors(tensors)
        bits = model.scaling.bits.nonzero().squeeze(1).tolist()
        predictor = cls(bits=bits, sensitivity=model.scaling.sensitivity or None)
        predictor._model = model
        predictor.ranks = Ranks.of(*(state[f"ranks.{name}"] for name in RANK_TENSORS))
        return predictor

    def _fitted(self) -> Model:
        if self._model is None:
            raise RuntimeError("fit the predictor before predicting")
        return self._model


def bootstraps(seen: Tensor, members: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of each row of `seen` (k, n) a bootstrap a member: how often each policy is drawn, (k members, n).

    With it, (k members, n), what each network's output counts in the held-out prediction of a policy.
    """
    chance = seen.float().repeat_interleave(members, dim=0)
    draws = torch.multinomial(chance, chance.shape[1], replacement=True, generator=generator)
    weight = torch.zeros_like(chance).scatter_add_(1, draws, torch.ones_like(chance))
    return weight, (1 - chance) / members

"""How far a policy is from the best of an additive model: a certificate where the network is near-additive.

On a scale where cuts multiply the drop in value they cause, values are often nearly a sum over groups. Such a sum is
fitted to what was measured, one smooth curve a group, and its best policy under the caps is found exactly
(`amc_search.program`): no policy under the caps is worth more to it. What the certificate says is as true as the model
is, so it tells how much of the values the model explains.

Symbols: n measured policies, d groups, L_g levels of group g.
score: -log(ceiling - value).
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from amc_search.program import THOROUGHLY, Effort, NoProgram, maximise
from amc_search.repair import Reals, repair
from amc_search.space import Cap, Policies, Space

# Above the best value, in spreads of the better half: where the scale ends. Far above, the scale is that of values.
CEILINGS = (0.3, 1.0, 10.0)
# How strongly the groups' curves are held together, in units of what the values say of them.
TIES = np.logspace(-4, 1, 6)
FOLDS = 5
BEND = 6.0  # of the curve that is flat but for thin groups
FEWEST = 10  # policies for a model
# A model that explains less of the values says nothing about the best policy.
NEAR_ADDITIVE = 0.5


@dataclass(frozen=True)
class Additive:
    """Value = ceiling - exp(-(constant + sum of curves)).

    Attributes:
        curves: a group's scores, (L_g,), smallest count first.
        constant: of the score.
        ceiling: a value that is never reached.
        explained: R^2 of cross-validated predictions of the better half of the values; below 0 where their mean does
            better.
    """

    space: Space
    curves: tuple[Reals, ...]
    constant: float
    ceiling: float
    explained: float

    @property
    def is_near(self) -> bool:
        """Whether the values are near enough to the model for its best policy to mean something."""
        return self.explained >= NEAR_ADDITIVE

    def value(self, score: float) -> float:
        """The value of a sum of curves."""
        return float(self.ceiling - np.exp(-(self.constant + score)))

    def __call__(self, policy: NDArray[np.int64]) -> float:
        """The value of one legal policy (d,)."""
        levels = (policy - self.space.low) // self.space.step
        return self.value(sum(float(curve[level]) for curve, level in zip(self.curves, levels, strict=True)))


def fit_additive(space: Space, policies: Policies, values: Reals) -> Additive:
    """The additive model of measured policies (n, d) and their values (n,), chosen by cross-validation.

    Every curve rises with the count, and each channel adds no more than the one before: a sum, with coefficients that
    are not negative, of functions that do so. The best policy of a freer model is where its errors are largest. A group
    that is dropped may do better or worse than its thinnest width says. Ties between the groups' coefficients say that
    what little was measured of a group is no reason to think it harmless.

    Raises:
        ValueError: fewer than `FEWEST` policies.
    """
    if len(policies) < FEWEST:
        raise ValueError(f"an additive model needs at least {FEWEST} policies, but got {len(policies)}")
    basis = np.concatenate([_basis(space, group, policies[:, group]) for group in range(len(space))], axis=1)
    better = values >= np.median(values)
    spread = max(float(values.max() - np.median(values)), 1e-6)
    fold = np.argsort(np.argsort(values, kind="stable"), kind="stable") % FOLDS  # each has good and bad ones
    least, best = np.inf, (0.0, 0.0)
    for ceiling in values.max() + spread * np.array(CEILINGS):
        score = -np.log(ceiling - values)
        for tie in TIES:
            held_out = np.empty_like(values)
            for number in range(FOLDS):
                held = fold == number
                coefficients, constant = _fitted(space, basis[~held], score[~held], tie)
                held_out[held] = ceiling - np.exp(-(basis[held] @ coefficients + constant))
            error = float(np.mean((held_out - values)[better] ** 2))
            if error < least:
                least, best = error, (float(ceiling), float(tie))
    ceiling, tie = best
    coefficients, constant = _fitted(space, basis, -np.log(ceiling - values), tie)
    curves = []
    for group, own in enumerate(coefficients.reshape(len(space), -1)):
        counts = np.arange(space.levels[group]) * space.step[group] + space.low[group]
        curves.append(_basis(space, group, counts) @ own)
    return Additive(space, tuple(curves), constant, ceiling, 1 - least / max(float(values[better].var()), 1e-12))


def _basis(space: Space, group: int, counts: Policies) -> Reals:
    """Counts (b,) of one group -> (b, 5): three rising functions, 0 at full width and near -1 at a tenth; [dropped]."""
    fractions = np.maximum(counts, space.step[group] / 2) / space.high[group]
    bend = np.exp(-BEND)
    rising = [fractions - 1, np.log(fractions) / np.log(10), (bend - np.exp(-BEND * fractions)) / (1 - bend)]
    dropped = (counts == 0).astype(np.float64)
    return np.stack([*rising, dropped, -dropped], axis=-1)


def _fitted(space: Space, basis: Reals, score: Reals, tie: float) -> tuple[Reals, float]:
    """Coefficients (5 d,), none negative, and constant of the score (n,), by least squares with ties."""
    width, groups = basis.shape[1], len(space)
    center, middle = basis.mean(axis=0), score.mean()
    deviation = np.eye(width)
    for function in range(3):
        own = np.arange(function, width, 5)
        deviation[np.ix_(own, own)] -= (1 - 1e-2) / groups
    rows = np.concatenate([basis - center, np.sqrt(tie * len(score) / groups) * deviation])
    coefficients, _ = nnls(rows, np.concatenate([score - middle, np.zeros(width)]), maxiter=30 * width)
    return coefficients, float(middle - center @ coefficients)


@dataclass(frozen=True)
class Certificate:
    """What the additive model knows of the best policy.

    Attributes:
        model: the model.
        policy: (d,) legal and under every cap, the best to the model that was found.
        value: its value by the model.
        bound: by the model no policy under the caps has a higher value.
        is_proven: the two agree.
        seconds: that fit and solver took.
    """

    model: Additive
    policy: NDArray[np.int64]
    value: float
    bound: float
    is_proven: bool
    seconds: float

    def gap(self, policy: NDArray[np.int64]) -> float:
        """How far a policy (d,) is from the bound, in value, by the model: at least 0 under the caps."""
        return max(self.bound - self.model(policy), 0.0)


def certify(
    space: Space, caps: tuple[Cap, ...], policies: Policies, values: Reals, effort: Effort = THOROUGHLY
) -> Certificate | None:
    """The best policy under the caps of the additive model of measured policies (n, d) and values (n,).

    None where too few were measured, where a cost is no sum of products, and where the solver found nothing in time.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
    """
    start = perf_counter()
    if len(policies) < FEWEST:
        return None
    model = fit_additive(space, policies, values)
    found = _optimum(model, caps, effort)
    if found is None:
        return None
    policy, bound, is_proven = found
    value = model(policy)
    return Certificate(model, policy, value, max(model.value(bound), value), is_proven, perf_counter() - start)


def _optimum(model: Additive, caps: tuple[Cap, ...], effort: Effort) -> tuple[NDArray[np.int64], float, bool] | None:
    """The best policy under the caps, the bound of its score, and whether it reaches that."""
    try:
        found = maximise(model.space, caps, model.curves, effort)
    except NoProgram:
        return None
    if found.policy is None:
        return None
    (policy,) = repair(found.policy[None].astype(np.float64), model.space, caps)
    return policy, found.bound, found.is_proven

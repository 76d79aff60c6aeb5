"""The ascent: from a fitted predictor and caps to the policies that should be best under them.

Many starts ascend the lower confidence bound in one batch, then each becomes legal integers, spends what is left of
the cap and exchanges steps between groups. Groups dropped at the start of an ascent stay dropped in it; which ones are
best is sought by ascending again from the best policies with one group dropped or taken back. No trial is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc_search.depth import switched
from amc_search.design import SPREADS, at_costs, distinct, some_dropped
from amc_search.moves import TOLERANCE, Bound, exchange, fill
from amc_search.repair import Reals, check_reachable, repair, uniform, utilisation
from amc_search.space import Cap, Policies, Predictor, Space

# Of the tightest cap: a candidate that uses less comes after all that use more.
ENOUGH = 0.97
# A space this small is not optimised but enumerated: the answer is then exact for the predictor.
ENUMERABLE = 4096
# Policies that are polished: fill and exchange cost d predictions a step for each of them.
POLISHED = 16
# Rounds of ascents from switched policies, the patterns of kept groups switched in each, and the ascents of one round.
SWITCH_ROUNDS, SWITCH_PARENTS, SWITCH_ASCENTS = 3, 4, 48

LEARNING_RATE, DECAY = 0.03, 0.1  # of Adam, in kept fractions; the share of it that is left at the last step
BETAS = 0.9, 0.99
# The weight of the log barrier in units of the bound's spread over the starts: annealed geometrically.
BARRIER = (0.1, 1e-3)
# Below this slack the log barrier continues as its tangent parabola: finite outside, so a step too far comes back.
SLACK = 0.01


@dataclass(frozen=True)
class Candidates:
    """What an ascent found, best first.

    Attributes:
        policies: (k, d) legal, under every cap, distinct.
        mean: (k,) predicted accuracy.
        std: (k,) its predicted standard deviation.
        utilisation: (k,) cost in units of the tightest cap, at most 1.
    """

    policies: Policies
    mean: Reals
    std: Reals
    utilisation: Reals

    def __len__(self) -> int:
        return len(self.policies)


def ascend(
    predictor: Predictor,
    space: Space,
    caps: tuple[Cap, ...],
    *,
    starts: int = 256,
    steps: int = 80,
    kappa: float = 1.0,
    seed: int = 0,
    warm: Policies | None = None,
    top: int = 8,
    barrier: bool = True,
    polish: bool = True,
) -> Candidates:
    """The policies with the best lower confidence bound mean - kappa * std under all caps.

    Order: policies that use at least 97 % of the tightest cap first, then by the bound. Each is filled until no
    single step of a kept group fits, so only a grid too coarse for it leaves the first below 97 %. What drops groups
    and has no room left in the others counts as using the cap: it costs less because what it lacks was not worth
    having. A space of at most 4096 policies is enumerated instead of optimised.

    Args:
        predictor: fitted.
        space: what is legal.
        caps: all hold.
        starts: points that ascend side by side.
        steps: of Adam.
        kappa: caution.
        seed: the same seed and predictor give the same candidates.
        warm: (m, d) the best measured policies, best first; the first quarter of the starts at most. Over a cap they
            are shrunk.
        top: how many to return at most.
        barrier: False takes the barrier out: every start ascends the bound alone and stops at the caps.
        polish: False takes the moves of integers out: what was optimised is rounded down, and not filled or exchanged.

    Returns:
        1 to `top` candidates.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
        ValueError: there is no cap, or starts, steps or top are not positive.
    """
    if not caps or min(starts, steps, top) < 1:
        got = f"{len(caps)} caps, {starts=}, {steps=}, {top=}"
        raise ValueError(f"caps, starts, steps and top must be at least one, but got {got}")
    check_reachable(space, caps)
    rng = np.random.default_rng(seed)
    bound = Bound(predictor, space, kappa)
    if np.prod(space.levels.astype(np.float64)) <= ENUMERABLE:
        every = _every_policy(space)
        return _ranked(every[utilisation(every, caps) <= 1], bound, caps, top)
    warm = space.low[None][:0] if warm is None else warm[: max(1, starts // 4)]
    known = np.concatenate([uniform(space, caps)[None], repair(warm, space, caps)])
    points = _inside(known, space, caps, starts, rng)
    optimise = partial(_ascend if barrier else _ascend_to_caps, bound=bound, caps=caps)
    reached = optimise(points, steps=steps) * space.high
    if not polish:
        return _ranked(np.concatenate([_rounded_down(reached, space, caps), known]), bound, caps, top)
    found = _best_first(np.concatenate([repair(reached, space, caps), known]), bound)
    if space.may_drop.any():
        found = _switch(found, bound, caps, partial(optimise, steps=max(1, steps // 2)))
    polished = _polish(found[: max(POLISHED, top)], bound, caps, rng)
    return _ranked(polished, bound, caps, top)


def _best_first(policies: Policies, bound: Bound) -> Policies:
    policies = distinct(policies)
    return policies[np.argsort(-bound(policies), kind="stable")]


def _rounded_down(counts: Reals, space: Space, caps: tuple[Cap, ...]) -> Policies:
    """Counts (b, d) -> legal policies, nowhere above them but at smallest steps; those over a cap are left out."""
    policies = np.clip(np.floor(counts / space.step + 1e-6) * space.step, space.low, space.high).astype(np.int64)
    policies = np.where((counts > 0) & (policies == 0), space.step, policies)
    return policies[utilisation(policies, caps) <= 1]


def _switch(found: Policies, bound: Bound, caps: tuple[Cap, ...], optimise: Callable[[Reals], Reals]) -> Policies:
    """Ascend on from the best policies with one removable group dropped or taken back, as long as that finds better.

    Args:
        found: (k, d) legal and feasible, best first.
        bound: what is optimised.
        caps: all hold.
        optimise: fractions (b, d) -> fractions ascended to.

    Returns:
        Those and what was found, best first.
    """
    space = bound.space
    for _ in range(SWITCH_ROUNDS):
        _, patterns = np.unique(found > 0, axis=0, return_index=True)
        parents = found[np.sort(patterns)[:SWITCH_PARENTS]]
        variants = _best_first(switched(parents, space, caps, 1 - SLACK)[1], bound)[:SWITCH_ASCENTS]
        reached = repair(optimise(variants / space.high) * space.high, space, caps)
        before = bound(found[:1])[0]
        found = _best_first(np.concatenate([found, reached]), bound)
        if not bound(found[:1])[0] > before + TOLERANCE:
            break
    return found


def _polish(policies: Policies, bound: Bound, caps: tuple[Cap, ...], rng: np.random.Generator) -> Policies:
    """Fill, exchange, fill what the exchange freed."""
    # Where the bound peaks well inside the caps, single steps would take long: scale up first.
    inner = utilisation(policies, caps) < 0.9
    policies = policies.copy()
    policies[inner] = at_costs(policies[inner].astype(np.float64), bound.space, caps, np.ones(int(inner.sum())))
    filled = distinct(fill(policies, bound, caps))
    filled = fill(_tightened(filled, bound.space, caps), bound, caps)
    return fill(exchange(filled, bound, caps, rng=rng, keep_utilisation=ENOUGH), bound, caps)


def _tightened(policies: Policies, space: Space, caps: tuple[Cap, ...]) -> Policies:
    """Where filling stopped below 97 % of the cap, trade steps between groups, whatever they gain, to come closer."""
    policies = policies.copy()
    for row in np.flatnonzero(utilisation(policies, caps) < ENOUGH):
        for _ in range(2 * len(space)):
            used = utilisation(policies[row : row + 1], caps)[0]
            grow = np.diag(space.step)
            tried = policies[row] + grow[:, None, :] * np.array([1, 2, 3])[:, None, None, None] - grow[None, None]
            tried = tried.reshape(-1, len(space))
            tried = tried[space.is_legal(tried) & ((tried > 0) == (policies[row] > 0)).all(axis=-1)]
            uses = utilisation(tried, caps)
            uses[uses > 1] = 0
            if used >= ENOUGH or not uses.max(initial=0) > used:
                break
            policies[row] = tried[uses.argmax()]
    return policies


def _ranked(policies: Policies, bound: Bound, caps: tuple[Cap, ...], top: int) -> Candidates:
    policies = distinct(policies)
    used, value = utilisation(policies, caps), bound(policies)
    counted = np.where(_is_spent(policies, used, bound.space, caps), ENOUGH, np.minimum(used, ENOUGH))
    best = np.lexsort((-value, -counted))[:top]
    with torch.no_grad():
        mean, std = bound.predictor.predict(bound.space.fractions(policies[best]))
    return Candidates(policies[best], mean.double().numpy(), std.double().numpy(), used[best])


def _is_spent(policies: Policies, used: Reals, space: Space, caps: tuple[Cap, ...]) -> NDArray[np.bool_]:
    """(b, d) -> (b,): groups are dropped, and no step of a kept one fits under the caps."""
    spent = used >= ENOUGH
    (rows,) = np.nonzero((policies == 0).any(axis=-1) & ~spent)
    more = policies[rows][:, None, :] + np.diag(space.step)
    fits = utilisation(more.reshape(-1, len(space)), caps).reshape(len(rows), len(space)) <= 1
    fits &= (policies[rows] > 0) & (policies[rows] < space.high)
    spent[rows] = ~fits.any(axis=-1)
    return spent


def _every_policy(space: Space) -> Policies:
    """All legal policies, (product of levels, d)."""
    levels = np.indices(tuple(space.levels)).reshape(len(space), -1).T
    return levels * space.step + space.low


def _inside(known: Policies, space: Space, caps: tuple[Cap, ...], starts: int, rng: np.random.Generator) -> Reals:
    """Fractions (starts, d) to start from: the known policies, the rest spread; all pulled just inside the caps."""
    spread = rng.choice((*SPREADS, 1.2), size=(max(starts - len(known), 0), 1))
    drawn: Reals = space.high.astype(np.float64) * np.exp(spread * rng.uniform(-1, 1, (len(spread), len(space))))
    counts = np.concatenate([known[:starts].astype(np.float64), some_dropped(drawn, space, rng)])
    projected = at_costs(counts, space, caps, rng.uniform(0.9, 1 - SLACK, len(counts)))
    return projected / space.high


def _ascend(points: Reals, bound: Bound, caps: tuple[Cap, ...], steps: int) -> Reals:
    """Adam on bound + weight * barrier for all rows at once."""
    high = torch.as_tensor(bound.space.high, dtype=torch.float64)
    with torch.no_grad():
        unit = float(torch.nan_to_num(bound.of(torch.as_tensor(points).float())).std(correction=0)) + 1e-4

    def value(x: Tensor, done: float) -> Tensor:
        weight = unit * BARRIER[0] * (BARRIER[1] / BARRIER[0]) ** done
        total: Tensor = bound.of(x) + weight * _barrier(x.double() * high, caps).float()
        return total

    *_, reached = [points, *_steps(points, bound.space, value, steps)]
    return reached


def _ascend_to_caps(points: Reals, bound: Bound, caps: tuple[Cap, ...], steps: int) -> Reals:
    """Adam on the bound alone; a row stops at the last point that is under every cap."""
    reached, inside = points.copy(), np.ones(len(points), dtype=np.bool_)
    for fractions in _steps(points, bound.space, lambda x, done: bound.of(x), steps):
        inside &= utilisation(fractions * bound.space.high, caps) <= 1
        reached[inside] = fractions[inside]
    return reached


def _steps(points: Reals, space: Space, value: Callable[[Tensor, float], Tensor], steps: int) -> Iterator[Reals]:
    """The fractions (b, d) after each step of Adam up a value (b,) of them and of the share of the steps done.

    Fractions are kept in range by clamping: between a step and 1, or at 0 where they start there.
    """
    x = torch.as_tensor(points).float()
    highest = (x > 0).float()
    lowest = highest * torch.as_tensor(space.step / space.high).float()
    optimizer = torch.optim.Adam([x.requires_grad_()], lr=LEARNING_RATE, betas=BETAS, maximize=True)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY ** (1 / max(steps - 1, 1)))
    for step in range(steps):
        with torch.enable_grad():
            total = value(x, step / max(steps - 1, 1)).sum()
        if not total.requires_grad:  # a predictor that is constant
            return
        (gradient,) = torch.autograd.grad(total, x)
        x.grad = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
        optimizer.step()
        decay.step()
        with torch.no_grad():
            x.clamp_(lowest, highest)
        fractions: Reals = x.detach().double().numpy()
        yield fractions


def _barrier(counts: Tensor, caps: tuple[Cap, ...]) -> Tensor:
    """Sum over caps of log(slack), slack = 1 - cost / limit, (b,): 0 far inside, continued smoothly below SLACK."""
    total = torch.zeros(len(counts), dtype=counts.dtype)
    for cap in caps:
        slack = 1 - cap.cost(counts) / cap.limit
        beyond = (slack - SLACK) / SLACK
        log = torch.log(slack.clamp(min=SLACK))
        total = total + log + torch.where(slack < SLACK, beyond - beyond**2 / 2, torch.zeros_like(beyond))
    return total

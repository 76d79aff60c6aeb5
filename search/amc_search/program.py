"""The best policy of an additive score under product costs, exactly: a mixed-integer linear program, solved by HiGHS.

One binary a group and level, of which each group takes one. Costs are polynomials in the keep-counts. A product of two
groups' counts becomes linear by sharing out the second over the levels of the first: of the shares w_l only that of the
level taken may differ from 0, and together they are the second count. Longer products are shared out again.

Symbols: d groups, L_g levels of group g, A axes, T terms, B bins of levels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import Tensor

from amc_search.repair import Reals, check_reachable
from amc_search.space import Cap, Policies, Space

# Beyond so many products of counts the program is not set up: solving it would take hours.
MOST_PRODUCTS = 4000
# Costs are compared in units of the limit; HiGHS holds a row within 1e-7.
ROOM = 1e-6


@dataclass(frozen=True)
class Effort:
    """When the solver has done enough.

    Attributes:
        bins: a group with more levels is seen in so many bins.
        gap: between solution and bound, in units of the solution.
        nodes: of its tree; unlike seconds, the same on any machine.
        seconds: of wall time.
    """

    bins: int
    gap: float
    nodes: int
    seconds: float


THOROUGHLY = Effort(bins=32, gap=1e-6, nodes=20_000, seconds=30.0)

Factors = tuple[tuple[int, int], ...]  # of a monomial: groups, rising, and their exponents
Linear = dict[int, float]  # variable -> coefficient


@runtime_checkable
class Affine(Protocol):
    """Linear forms of the keep-counts: `constant + policies @ channels.T`. A cost that is no more is their largest.

    Attributes:
        channels: (A, d).
        constant: (A,).
    """

    @property
    def channels(self) -> Tensor: ...

    @property
    def constant(self) -> Tensor: ...


@runtime_checkable
class Products(Affine, Protocol):
    """A cost that is a sum of products of linear forms.

    Attributes:
        terms: (T, factors) which forms each term multiplies.
        coefficients: (T,) the rest of each term.
    """

    @property
    def terms(self) -> Tensor: ...

    @property
    def coefficients(self) -> Tensor: ...


class NoProgram(ValueError):
    """The problem cannot be written as a program, or only as one too large to solve."""


@dataclass(frozen=True)
class Optimum:
    """What the solver found.

    Attributes:
        policy: (d,) legal, the best found, or None if none was. Under every cap but for rounding of the solver's.
        bound: no legal policy under the caps has a higher score.
        is_proven: the policy's score reaches the bound, but for rounding.
    """

    policy: NDArray[np.int64] | None
    bound: float
    is_proven: bool


def maximise(space: Space, caps: tuple[Cap, ...], scores: tuple[Reals, ...], effort: Effort = THOROUGHLY) -> Optimum:
    """The policy with the largest sum of its groups' scores under all caps, and a bound that no policy exceeds.

    Groups of more levels than `effort.bins` are seen in bins: a bin has the best score and the smallest count of its
    levels. The bound then still holds, and the policy made of the smallest counts is still under the caps, but its
    score need not be the best.

    Args:
        space: what is legal.
        caps: all hold; their costs are `Products`, or `Affine` for the largest of linear forms.
        scores: one array a group, (L_g,), the score of each of its levels, smallest count first.
        effort: when the solver has done enough.

    Raises:
        CapUnreachable: the smallest policy is over a cap.
        NoProgram: a cost is neither of the two, or has too many products.
    """
    check_reachable(space, caps)
    bins = [_bins(space, group, score, effort.bins) for group, score in enumerate(scores)]
    program = _Program(space, [counts for counts, _ in bins])
    for cap in caps:
        program.hold(cap)
    values = np.concatenate([score for _, score in bins])
    unit = max(float(np.ptp(values)), 1e-9 * float(np.abs(values).max()), 1e-12)  # above the rounding of a sum
    fraction, bound = program.solved(values / unit, effort)
    if fraction is None:
        return Optimum(None, bound * unit, False)
    chosen = [counts[int(np.argmax(part))] for (counts, _), part in zip(bins, program.split(fraction), strict=True)]
    policy = np.array(chosen, dtype=np.int64)
    reached = sum(float(score[level]) for score, level in zip(scores, (policy - space.low) // space.step, strict=True))
    return Optimum(policy, bound * unit, bound * unit - reached <= 1e-4 * unit)


def _bins(space: Space, group: int, score: Reals, most: int) -> tuple[Policies, Reals]:
    """The levels of a group, or bins of them: smallest counts (B,), rising, and best scores (B,).

    Bins widen with the count: a step matters less in a wide group.
    """
    counts = np.arange(space.levels[group]) * space.step[group] + space.low[group]
    first = np.unique(np.rint(np.geomspace(1, len(counts), most)).astype(int)) - 1
    if len(counts) <= most:
        first = np.arange(len(counts))
    return counts[first], np.maximum.reduceat(score, first)


class _Program:
    """Variables and rows of the program; the binaries of all groups come first."""

    def __init__(self, space: Space, counts: list[Policies]) -> None:
        self.space = space
        self.fractions = [own / size for own, size in zip(counts, space.sizes, strict=True)]
        ends = np.cumsum([0, *(len(own) for own in counts)])
        self.binaries = [np.arange(start, end) for start, end in pairwise(ends)]
        self.variables = int(ends[-1])
        self.rows: list[tuple[Linear, float, float]] = []
        for own in self.binaries:
            self.rows.append((dict.fromkeys(own.tolist(), 1.0), 1.0, 1.0))
        self.products: dict[Factors, Linear] = {}

    def split(self, variables: Reals) -> list[Reals]:
        return [variables[own] for own in self.binaries]

    def hold(self, cap: Cap) -> None:
        """Add the rows that keep one cap."""
        if not isinstance(cap.cost, Affine):
            raise NoProgram(f"a cost must be a sum of products to be written as a program, but {cap.cost.unit} is not")
        if isinstance(cap.cost, Products):
            polynomials = [_polynomial(cap.cost, self.space)]
        else:
            forms = cap.cost.channels.numpy() * self.space.high, cap.cost.constant.numpy()
            polynomials = [_form(*row) for row in zip(*forms, strict=True)]
        for polynomial in polynomials:
            constant = polynomial.pop((), 0.0)
            if len(self.products) + len(polynomial) > MOST_PRODUCTS:
                raise NoProgram(f"at most {MOST_PRODUCTS} products of counts can be solved, but got {len(polynomial)}")
            row: Linear = {}
            for factors, times in polynomial.items():
                _add(row, self.product(factors), times / cap.limit)
            self.rows.append((row, -np.inf, 1 + ROOM - constant / cap.limit))

    def product(self, factors: Factors) -> Linear:
        """A product of kept fractions as a linear form of the variables."""
        if factors not in self.products:
            (group, exponent), rest = factors[0], factors[1:]
            levels, powers = self.binaries[group], self.fractions[group] ** exponent
            if rest:
                levels = self._shared_out(group, rest)
            self.products[factors] = dict(zip(levels.tolist(), powers.tolist(), strict=True))
        return self.products[factors]

    def _shared_out(self, group: int, factors: Factors) -> NDArray[np.int64]:
        """Variables (B,), one a level of the group: the product of the factors at the level taken, 0 at the others."""
        whole = self.product(factors)
        low, high = (prod(end(self.fractions[g]) ** e for g, e in factors) for end in (min, max))
        shares = np.arange(self.variables, self.variables + len(self.binaries[group]))
        self.variables += len(shares)
        together = dict.fromkeys(shares.tolist(), 1.0)
        _add(together, whole, -1.0)
        self.rows.append((together, 0.0, 0.0))
        for share, binary in zip(shares.tolist(), self.binaries[group].tolist(), strict=True):
            self.rows.append(({share: 1.0, binary: -high}, -np.inf, 0.0))
            self.rows.append(({share: 1.0, binary: -low}, 0.0, np.inf))
        return shares

    def solved(self, values: Reals, effort: Effort) -> tuple[Reals | None, float]:
        """Values of the binaries -> all variables of the best solution, or None, and the bound."""
        gains = np.concatenate([values, np.zeros(self.variables - len(values))])
        entries = [(row, *entry) for row, (terms, _, _) in enumerate(self.rows) for entry in terms.items()]
        row, column, coefficient = (np.array(part) for part in zip(*entries, strict=True))
        matrix = csr_array((coefficient, (row, column)), shape=(len(self.rows), self.variables))
        rows = LinearConstraint(matrix, *(np.array(ends) for ends in list(zip(*self.rows, strict=True))[1:]))
        with _without_output():
            found = milp(
                -gains,
                integrality=np.arange(self.variables) < len(values),
                bounds=Bounds(0.0, 1.0),
                constraints=rows,
                options={"time_limit": effort.seconds, "node_limit": effort.nodes, "mip_rel_gap": effort.gap},
            )
        # Without a solver's word every group could take its best level.
        best = sum(float(part.max()) for part in self.split(values))
        bound = getattr(found, "mip_dual_bound", None)
        return found.x, best if bound is None or not np.isfinite(bound) else min(best, -float(bound))


@contextmanager
def _without_output() -> Iterator[None]:
    """HiGHS prints stray lines of its own to the process' standard output, where a command's JSON may stand."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _form(channels: Reals, constant: float) -> dict[Factors, float]:
    """A linear form, (d,) per kept fraction, as a polynomial."""
    return {(): float(constant)} | {((int(group), 1),): float(channels[group]) for group in np.flatnonzero(channels)}


def _polynomial(cost: Products, space: Space) -> dict[Factors, float]:
    """Factors -> coefficient of a cost in kept fractions, without zeros."""
    scaled, constants = cost.channels.numpy() * space.high, cost.constant.numpy()
    forms = [_form(*row) for row in zip(scaled, constants, strict=True)]
    total: dict[Factors, float] = {}
    for axes, coefficient in zip(cost.terms.tolist(), cost.coefficients.tolist(), strict=True):
        term: dict[Factors, float] = {(): float(coefficient)}
        for axis in axes:
            term = _multiplied(term, forms[axis])
        for factors, times in term.items():
            total[factors] = total.get(factors, 0.0) + times
    return {factors: times for factors, times in total.items() if times}


def _multiplied(left: dict[Factors, float], right: dict[Factors, float]) -> dict[Factors, float]:
    result: dict[Factors, float] = {}
    for one, times in left.items():
        for other, more in right.items():
            exponents = dict(one)
            for group, exponent in other:
                exponents[group] = exponents.get(group, 0) + exponent
            factors = tuple(sorted(exponents.items()))
            result[factors] = result.get(factors, 0.0) + times * more
    return result


def _add(row: Linear, terms: Linear, times: float) -> None:
    for variable, coefficient in terms.items():
        row[variable] = row.get(variable, 0.0) + times * coefficient

"""What every method of search is given in a comparison: a space, caps and a budget of trials.

A value is the objective value that a method sees for a measured policy: in (0, 1], higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from amc_search.repair import check_reachable
from amc_search.space import Cap, Policies, Space, is_feasible

Curves = Sequence[tuple[Sequence[float], Sequence[float]]]  # of each group: kept fractions, and the loss at each


class Spent(Exception):
    """Raised by `Problem.measure` instead of a value beyond the budget of trials."""


class Problem:
    """One search: find the policy under all caps with the highest value, from at most `trials` trials.

    Attributes:
        space: what is legal.
        caps: all hold; at least one.
        trials: how many distinct policies may be measured.
        seed: a method draws all that is random from it, so that the same seed and values give the same search.
        dense_label: of the dense network where it is known: every method may use it for nothing.
        price: of `sensitivity_curves`, in trials.
        spent: trials that were given for what is none.
    """

    def __init__(
        self,
        space: Space,
        caps: tuple[Cap, ...],
        value: Callable[[NDArray[np.int64]], float],
        *,
        trials: int,
        seed: int,
        dense_value: float | None = None,
        curves: Callable[[], Curves] | None = None,
        price: int = 0,
    ) -> None:
        """Start with nothing measured.

        Raises:
            CapUnreachable: the smallest policy is over a cap.
            ValueError: there is no cap or no trial.
        """
        if not caps or trials < 1:
            raise ValueError(f"caps and trials must be at least one, but got {len(caps)} caps, {trials=}")
        check_reachable(space, caps)
        self.space = space
        self.caps = caps
        self.trials = trials
        self.seed = seed
        self.dense_value = dense_value
        self.price = price
        self._curves = curves
        self.spent = 0
        self._value = value
        self._measured: list[NDArray[np.int64]] = []
        self._known: dict[bytes, float] = {}  # in the order of `_measured`

    @property
    def policies(self) -> Policies:
        """The measured policies in their order, (n, d)."""
        return np.array(self._measured, dtype=np.int64).reshape(-1, len(self.space))

    @property
    def values(self) -> NDArray[np.float64]:
        """Theirs, (n,)."""
        return np.array(list(self._known.values()), dtype=np.float64)

    @property
    def known(self) -> tuple[Policies, NDArray[np.float64]]:
        """`policies` and `values`, and after them the dense network's where its value is known."""
        if self.dense_value is None:
            return self.policies, self.values
        return np.concatenate([self.policies, self.space.high[None]]), np.append(self.values, self.dense_value)

    @property
    def left(self) -> int:
        """How many more policies may be measured."""
        return self.trials - self.spent - len(self._measured)

    def sensitivity_curves(self) -> Curves | None:
        """What each group's cut alone costs, measured roughly; None where that cannot be measured, or not paid for.

        It costs `price` trials the first time: as many as pass the same number of examples through a network.
        """
        if self._curves is None or self.left <= self.price:
            return None
        self.spent, self.price = self.spent + self.price, 0
        return self._curves()

    def is_known(self, policy: NDArray[np.int64]) -> bool:
        """Whether a policy (d,) was measured before, so that its value is free."""
        return _key(policy) in self._known

    def measure(self, policy: NDArray[np.int64]) -> float:
        """The value of one legal policy (d,); that of a policy measured before, or of the dense network, is free.

        Raises:
            Spent: the policy is new and all trials are spent.
            ValueError: the policy is not legal, or its value is not finite.
        """
        if np.shape(policy) != (len(self.space),) or not self.space.is_legal(policy):
            raise ValueError(f"a measured policy must be legal, but got {np.asarray(policy).tolist()}: repair it first")
        key = _key(policy)
        if key in self._known:
            return self._known[key]
        if self.dense_value is not None and (policy == self.space.high).all():
            return self.dense_value
        if self.left < 1:
            raise Spent
        own = np.array(policy, dtype=np.int64)
        value = float(self._value(own.copy()))
        if not np.isfinite(value):
            raise ValueError(
                f"a value must be finite, but got {value} for {own.tolist()}: give what is degenerate a value near 0"
            )
        self._measured.append(own)
        self._known[key] = value
        return value

    def measure_all(self, policies: Iterable[NDArray[np.int64]]) -> None:
        """`measure` each of them, for a method that reads `values`."""
        for policy in policies:
            self.measure(policy)

    def best(self) -> tuple[NDArray[np.int64], float]:
        """The measured policy under all caps with the highest value, the first of equals, and its value.

        Raises:
            ValueError: none was measured under all caps.
        """
        if not self._measured or not (feasible := is_feasible(self.policies, self.caps)).any():
            raise ValueError(f"a measured policy must be under all caps, but none of {len(self._measured)} is")
        index = int(np.argmax(np.where(feasible, self.values, -np.inf)))
        return self._measured[index].copy(), float(self.values[index])


Method = Callable[[Problem], None]  # measures until it is done, or until `Spent` escapes


def run(method: Method, problem: Problem) -> Problem:
    """Let a method search until it is done or its trials are spent, and give the problem back."""
    try:
        method(problem)
    except Spent:
        pass
    return problem


def _key(policy: NDArray[np.int64]) -> bytes:
    return np.asarray(policy, dtype=np.int64).tobytes()

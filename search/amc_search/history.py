"""What a study knows, as arrays: every finished trial is read once, however long the study grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from amc_search.space import Policies, Space

CLAIM = "amc_search:claim"  # system attribute: the policy of a trial from the moment it is chosen
# A policy whose trials failed this often is left alone: once may be a dead worker, twice is the policy.
FAILURES = 2


@dataclass(frozen=True)
class History:
    """What a study knows, as arrays.

    Attributes:
        policies: (n, d) of the measured trials, those that were stopped early with a value included.
        accuracy: (n,) their values.
        pending: (m, d) running or waiting in other hands.
        failed: policies that failed too often, as bytes.
    """

    policies: Policies
    accuracy: NDArray[np.float64]
    pending: Policies
    failed: frozenset[bytes]

    @property
    def taken(self) -> set[bytes]:
        return {policy.tobytes() for policy in (*self.policies, *self.pending)} | self.failed


class Ledger:
    """The trials of one study, kept up to date.

    Attributes:
        measured: the trials with a value, in the order they were first seen finished.
        policies: theirs.
        pending: trial number -> policy of those in other hands.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.measured: list[FrozenTrial] = []
        self.policies: list[NDArray[np.int64]] = []
        self.pending: dict[int, NDArray[np.int64]] = {}
        self._finished: set[int] = set()
        self._keys: set[bytes] = set()
        self._failures: Counter[bytes] = Counter()

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in all trials of the study; those that finished before are passed over."""
        self.pending = {}
        for trial in trials:
            if trial.number in self._finished:
                continue
            policy = policy_of(trial, self.space)
            if not trial.state.is_finished():
                if policy is not None:
                    self.pending[trial.number] = policy
                continue
            self._finished.add(trial.number)
            if policy is None:
                continue
            if has_value(trial):
                self.measured.append(trial)
                self.policies.append(policy)
                self._keys.add(policy.tobytes())
            else:
                self._failures[policy.tobytes()] += 1

    @property
    def failed(self) -> frozenset[bytes]:
        return frozenset(policy for policy, times in self._failures.items() if times >= FAILURES)

    def is_taken(self, key: bytes, but: int) -> bool:
        """Whether a policy, as bytes, is measured, failed too often, or in the hands of another trial than `but`."""
        if key in self._keys or self._failures[key] >= FAILURES:
            return True
        return any(number != but and policy.tobytes() == key for number, policy in self.pending.items())

    def history(
        self,
        values: Callable[[Sequence[FrozenTrial]], NDArray[np.float64]],
        dense_accuracy: float | None,
        but: int | None,
    ) -> History:
        """The study as arrays, with the dense network where its accuracy is known; trial `but` is left out."""
        policies, accuracy = list(self.policies), values(self.measured)
        if dense_accuracy is not None:
            policies.append(self.space.high)
            accuracy = np.append(accuracy, dense_accuracy)
        pending = [policy for number, policy in self.pending.items() if number != but]
        return History(
            policies=np.array(policies, dtype=np.int64).reshape(-1, len(self.space)),
            accuracy=accuracy,
            pending=np.array(pending, dtype=np.int64).reshape(-1, len(self.space)),
            failed=self.failed,
        )


def has_value(trial: FrozenTrial) -> bool:
    """Whether there is something to learn from a trial: in full, or what it gave before it was stopped."""
    finished = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return finished and trial.value is not None and bool(np.isfinite(trial.value))


def policy_of(trial: FrozenTrial, space: Space) -> NDArray[np.int64] | None:
    """What a trial measures: its parameters, else what was enqueued for it, else its claim; None before that."""
    sources: tuple[dict[str, Any], ...] = (trial.params, trial.system_attrs.get("fixed_params", {}))
    for source in sources:
        if all(name in source for name in space.names):
            return np.array([source[name] for name in space.names], dtype=np.int64)
    claim = trial.system_attrs.get(CLAIM)
    return None if claim is None else np.array(claim, dtype=np.int64)

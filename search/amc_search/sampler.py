"""An Optuna sampler that proposes keep-counts: a space-filling start, then evolution on a predictor.

All state is in the study's storage, so that any number of processes on any number of hosts can share a study, and a
new sampler object resumes it. A trial carries, as system attributes, the policy it claims and, where it opened one,
the batch that later trials draw from.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from amc_search.acquisition import ACQUISITIONS, quotas
from amc_search.design import starting_policies
from amc_search.proposals import propose_by_arm, unseen
from amc_search.repair import check_reachable, uniform
from amc_search.space import Cap, Policies, Predictor, Space

CLAIM = "amc_search:claim"  # system attribute: the policy of a trial from the moment it is chosen
ARM = "amc_search:arm"  # user attribute: which arm chose it
# A policy whose trials failed this often is left alone: once may be a dead worker, twice is the policy.
FAILURES = 2


@dataclass(frozen=True)
class History:
    """What a study knows, as arrays.

    Attributes:
        policies: (n, d) of the complete trials.
        accuracy: (n,) their labels.
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


def values_of(trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """The trials' own values, (n,)."""
    return np.array([trial.value for trial in trials], dtype=np.float64)


class EvolutionarySampler(BaseSampler):
    """Chooses informative policies, so that a predictor fitted on few trials can be climbed under the caps.

    The first trials are the starting design (`starting_policies`). Then every `batch` trials the predictor is fitted
    on all complete trials and the arms of `propose_by_arm` fill the next batch. Failed and NaN trials are never
    learned from. No policy is proposed that is measured or being measured, in this process or another, until no
    other is left: then policies over the cap follow, and in the end repetitions.
    """

    def __init__(
        self,
        space: Space,
        caps: tuple[Cap, ...],
        make_predictor: Callable[[], Predictor],
        *,
        seed: int,
        startup: int | None = None,
        batch: int = 8,
        arms: Mapping[str, float] | None = None,
        acquisition: str = "informative",
        dense_accuracy: float | None = None,
        labels: Callable[[Sequence[FrozenTrial]], NDArray[np.float64]] = values_of,
    ) -> None:
        """Direction: maximise accuracy in [0, 1].

        Args:
            space: what is legal; its names name the parameters.
            caps: proposals are under all of them, near the tightest; the starting design reaches beyond.
            make_predictor: a new predictor, not yet fitted; called once a batch.
            seed: with a trial's number it determines all that is random in that trial.
            startup: trials of the starting design; by default 2 d, at least 10 and at most 32.
            batch: trials between two fits.
            arms: name -> share of a batch; by default those that `ACQUISITIONS` has under `acquisition`.
            acquisition: "informative", or "seernet" for the paper's own score.
            dense_accuracy: accuracy of the dense network where it is known; it is learned from and not measured again.
            labels: what is learned from the complete trials, (n,) in [0, 1]; by default their values.

        Raises:
            CapUnreachable: the smallest policy is over a cap.
            ValueError: an argument breaks a rule above.
        """
        if acquisition not in ACQUISITIONS:
            raise ValueError(f"acquisition must be one of {sorted(ACQUISITIONS)}, but got {acquisition!r}")
        if not caps:
            raise ValueError("at least one cap must be given, but got none: without a cap the dense network is best")
        if batch < 1 or (startup is not None and startup < 1):
            raise ValueError(f"batch and startup must be at least 1, but got {batch=}, {startup=}")
        if dense_accuracy is not None and not 0 <= dense_accuracy <= 1:
            raise ValueError(f"dense_accuracy must be in [0, 1], but got {dense_accuracy}: divide a percentage by 100")
        check_reachable(space, caps)
        self.space = space
        self.caps = caps
        self.make_predictor = make_predictor
        self.seed = seed
        self.startup = int(np.clip(2 * len(space), 10, 32)) if startup is None else startup
        self.batch = batch
        self.arms = dict(ACQUISITIONS[acquisition] if arms is None else arms)
        self.dense_accuracy = dense_accuracy
        self.labels = labels
        quotas(self.arms, batch)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.search_space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Claim a policy for this trial: group name -> keep-count.

        Raises:
            ValueError: the study has several objectives or minimises.
        """
        if study.directions != [StudyDirection.MAXIMIZE]:
            raise ValueError(
                f"the study must maximise one value, the accuracy, but its directions are "
                f"{[direction.name for direction in study.directions]}: create it with direction='maximize'"
            )
        arm, policy = self._claim(study, trial)
        study._storage.set_trial_user_attr(trial._trial_id, ARM, arm)
        return dict(zip(self.space.names, map(int, policy), strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise ValueError(
            f"every parameter must be a group of the space, but got {param_name!r}: "
            f"suggest only {', '.join(self.space.names[:3])}{', ...' if len(self.space) > 3 else ''}"
        )

    @cached_property
    def search_space(self) -> dict[str, BaseDistribution]:
        """One integer parameter a group; for `study.ask(fixed_distributions=...)` too."""
        groups = zip(self.space.names, self.space.sizes, self.space.steps, strict=True)
        return {name: IntDistribution(low=step, high=size, step=step) for name, size, step in groups}

    @cached_property
    def design(self) -> Policies:
        """The starting design, with one spare for each that may be lost to a collision."""
        return starting_policies(self.space, self.caps, 2 * self.startup, self.seed)

    def history(self, study: Study, but: int | None = None) -> History:
        """The study as arrays; the trial numbered `but` is left out."""
        measured: list[NDArray[np.int64]] = []
        complete: list[FrozenTrial] = []
        pending: list[NDArray[np.int64]] = []
        failures: Counter[bytes] = Counter()
        for trial in study.get_trials(deepcopy=False):
            policy = self._policy_of(trial)
            if trial.number == but or policy is None:
                continue
            if trial.state == TrialState.COMPLETE and trial.value is not None and np.isfinite(trial.value):
                measured.append(policy)
                complete.append(trial)
            elif trial.state.is_finished():
                failures[policy.tobytes()] += 1
            else:
                pending.append(policy)
        accuracy = self.labels(complete)
        if self.dense_accuracy is not None:
            measured.append(self.space.high)
            accuracy = np.append(accuracy, self.dense_accuracy)
        return History(
            policies=np.array(measured, dtype=np.int64).reshape(-1, len(self.space)),
            accuracy=accuracy,
            pending=np.array(pending, dtype=np.int64).reshape(-1, len(self.space)),
            failed=frozenset(policy for policy, times in failures.items() if times >= FAILURES),
        )

    def _claim(self, study: Study, trial: FrozenTrial) -> tuple[str, NDArray[np.int64]]:
        """Choose a policy, write it down, and look again whether another trial chose it at the same time.

        Of two writers at least the later one sees the other's claim and moves on; both may, then a policy is free for
        the next trial. Trials differ in their candidates by their number, so they do not chase each other.
        """
        beaten: set[bytes] = set()
        while True:
            history = self.history(study, but=trial.number)
            taken = history.taken | beaten
            for arm, policy in self._candidates(study, trial, history, taken):
                key = policy.tobytes()
                if key in taken and arm != "repeat":
                    continue
                study._storage.set_trial_system_attr(trial._trial_id, CLAIM, policy.tolist())
                if arm == "repeat" or key not in self.history(study, but=trial.number).taken:
                    return arm, policy
                beaten.add(key)
                break

    def _candidates(
        self, study: Study, trial: FrozenTrial, history: History, taken: set[bytes]
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """(arm, policy) in the order to try them; the last, a repetition, is always there."""
        known = len(history.policies) + len(history.pending) - (self.dense_accuracy is not None)
        if known < self.startup:
            yield from (("start", policy) for policy in self.design)
        if (stored := self._stored_batch(study, trial)) is not None:
            yield from stored
        yield from self._new_batch(study, trial, history)
        yield from (("random", policy) for policy in unseen(self.space, self.caps, taken, 1))
        around = uniform(self.space, self.caps)
        yield from (("over", policy) for policy in unseen(self.space, (), taken, 1, start=around))
        repeats = history.policies if len(history.policies) else around[None]
        yield "repeat", repeats[trial.number % len(repeats)]

    @cached_property
    def _batch_key(self) -> str:
        """Names the system attribute of a batch: samplers with other caps or arms have other batches."""
        caps = [(cap.cost.unit, cap.limit) for cap in self.caps]
        told = json.dumps([self.space.names, self.space.sizes, self.space.steps, caps, sorted(self.arms.items())])
        return f"amc_search:batch:{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def _stored_batch(self, study: Study, trial: FrozenTrial) -> list[tuple[str, NDArray[np.int64]]] | None:
        """The newest batch that a trial opened less than `batch` trials ago, in this process or another."""
        for other in reversed(study.get_trials(deepcopy=False)):
            if other.number <= trial.number - self.batch:
                return None
            if self._batch_key in other.system_attrs:
                return [(arm, np.array(policy, dtype=np.int64)) for arm, policy in other.system_attrs[self._batch_key]]
        return None

    def _new_batch(self, study: Study, trial: FrozenTrial, history: History) -> Iterable[tuple[str, NDArray[np.int64]]]:
        """Fit, propose, and leave the batch on this trial for those that follow."""
        predictor = None
        if len(history.policies) >= 2:
            predictor = self.make_predictor()
            accuracy = torch.as_tensor(history.accuracy, dtype=torch.float32)
            predictor.fit(self.space.fractions(history.policies), accuracy)
        refused = np.array([np.frombuffer(key, dtype=np.int64) for key in sorted(history.failed)], dtype=np.int64)
        chosen = propose_by_arm(
            self.space,
            self.caps,
            history.policies,
            history.accuracy,
            np.concatenate([history.pending, refused.reshape(-1, len(self.space))]),
            predictor=predictor,
            count=self.batch,
            arms=self.arms,
            seed=(self.seed, trial.number + 1),
        )
        named = [(arm, policy) for arm, policies in chosen.items() for policy in policies]
        # Any stretch of the batch should hold every arm: the study may stop, or many workers draw, at any point.
        named = [named[index] for index in np.random.default_rng((self.seed, trial.number)).permutation(len(named))]
        stored = [(arm, policy.tolist()) for arm, policy in named]
        study._storage.set_trial_system_attr(trial._trial_id, self._batch_key, stored)
        return named

    def _policy_of(self, trial: FrozenTrial) -> NDArray[np.int64] | None:
        """What a trial measures: its parameters, else what was enqueued for it, else its claim; None before that."""
        for source in (trial.params, trial.system_attrs.get("fixed_params", {})):
            if all(name in source for name in self.space.names):
                return np.array([source[name] for name in self.space.names], dtype=np.int64)
        claim = trial.system_attrs.get(CLAIM)
        return None if claim is None else np.array(claim, dtype=np.int64)

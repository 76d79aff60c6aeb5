"""An Optuna sampler that proposes keep-counts: a space-filling start, then evolution on a predictor.

All state is in the study's storage, so that any number of processes on any number of hosts can share a study, and a
new sampler object resumes it. A trial carries, as system attributes, the policy it claims and, where it opened one,
the batch that later trials draw from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from amc_search.acquisition import ACQUISITIONS, quotas
from amc_search.design import nearby_policies, starting_policies, usual_start
from amc_search.history import CLAIM, History, Ledger
from amc_search.proposals import propose_by_function, unseen
from amc_search.repair import check_reachable, uniform
from amc_search.space import Cap, Policies, Predictor, Space

PROPOSER = "amc_search:arm"  # user attribute: which acquisition function chose it
FEWEST = 4  # measured policies that a predictor is fitted on; before, all acquisition functions are random
LARGEST_BATCH = 8
TRIALS_A_STEP = 48  # so many measured policies make a batch one larger
RESERVE = 0.5  # of a batch, proposed beyond it: for those that come while another worker makes the next one


def values_of(trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """The trials' own values, (n,)."""
    return np.array([trial.value for trial in trials], dtype=np.float64)


def search_space(space: Space) -> dict[str, IntDistribution]:
    """One integer parameter a group, from 0 where it may be dropped."""
    groups = zip(space.names, space.low.tolist(), space.sizes, space.steps, strict=True)
    return {name: IntDistribution(low=low, high=high, step=step) for name, low, high, step in groups}


class EvolutionarySampler(BaseSampler):
    """Chooses informative policies, so that a predictor fitted on few trials can be ascended under the caps.

    The first trials are the starting design (`starting_policies`). Then every `batch` trials the predictor is fitted
    on all measured trials and `propose_by_function` fills the next batch. Failed and NaN trials are never
    learned from; those that were stopped early are, by the value they had. No policy is proposed that is measured or
    being measured, in this process or another, until no other is left: then policies over the cap follow, and in the
    end repetitions.
    """

    def __init__(
        self,
        space: Space,
        caps: tuple[Cap, ...],
        make_predictor: Callable[[], Predictor],
        *,
        seed: int,
        startup: int | None = None,
        batch: int | None = None,
        shares: Mapping[str, float] | None = None,
        acquisition: str = "informative",
        dense_accuracy: float | None = None,
        is_informed: bool = False,
        values: Callable[[Sequence[FrozenTrial]], NDArray[np.float64]] = values_of,
    ) -> None:
        """Direction: maximise accuracy in [0, 1].

        Args:
            space: what is legal; its names name the parameters.
            caps: proposals are under all of them, near the tightest; the starting design reaches beyond.
            make_predictor: a new predictor, not yet fitted; called once a batch.
            seed: with a trial's number it determines all that is random in that trial.
            startup: trials of the starting design; by default those of `usual_start`.
            batch: trials between two fits; by default 1 at first, and more as more is known, up to `LARGEST_BATCH`.
            shares: acquisition function -> share of a batch; by default `ACQUISITIONS[acquisition]`.
            acquisition: "informative", or for comparison "exploring" or "seernet", the paper's own score.
            dense_accuracy: accuracy of the dense network where it is known; it is learned from and not measured again.
            is_informed: the predictor knows the groups' sensitivity, so that the start is short and near the caps.
            values: what is learned from the measured trials, (n,) in [0, 1]; by default their values.

        Raises:
            CapUnreachable: the smallest policy is over a cap.
            ValueError: an argument breaks a rule above.
        """
        if acquisition not in ACQUISITIONS:
            raise ValueError(f"acquisition must be one of {sorted(ACQUISITIONS)}, but got {acquisition!r}")
        if not caps:
            raise ValueError("at least one cap must be given, but got none: without a cap the dense network is best")
        if (batch is not None and batch < 1) or (startup is not None and startup < 1):
            raise ValueError(f"batch and startup must be at least 1, but got {batch=}, {startup=}")
        if dense_accuracy is not None and not 0 <= dense_accuracy <= 1:
            raise ValueError(f"dense_accuracy must be in [0, 1], but got {dense_accuracy}: divide a percentage by 100")
        check_reachable(space, caps)
        self.space = space
        self.caps = caps
        self.make_predictor = make_predictor
        self.seed = seed
        self.startup = usual_start(space, is_informed) if startup is None else startup
        self.batch = batch
        self.is_informed = is_informed
        self.shares = dict(ACQUISITIONS[acquisition] if shares is None else shares)
        self.dense_accuracy = dense_accuracy
        self.values = values
        self._ledgers: WeakKeyDictionary[BaseStorage, dict[int, Ledger]] = WeakKeyDictionary()
        quotas(self.shares, LARGEST_BATCH)

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
        proposer, policy = self._claim(study, trial)
        study._storage.set_trial_user_attr(trial._trial_id, PROPOSER, proposer)
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
        return dict(search_space(self.space))

    @cached_property
    def design(self) -> Policies:
        """The starting design, with one spare for each that may be lost to a collision."""
        start = nearby_policies if self.is_informed else starting_policies
        return start(self.space, self.caps, 2 * self.startup, self.seed)

    def history(self, study: Study, but: int | None = None) -> History:
        """The study as arrays; the trial numbered `but` is left out."""
        return self._read(study)[0].history(self.values, self.dense_accuracy, but)

    def _read(self, study: Study) -> tuple[Ledger, list[FrozenTrial]]:
        """All that the storage holds now."""
        ledgers = self._ledgers.setdefault(study._storage, {})
        ledger = ledgers.setdefault(study._study_id, Ledger(self.space))
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        ledger.read(trials)
        return ledger, trials

    def _claim(self, study: Study, trial: FrozenTrial) -> tuple[str, NDArray[np.int64]]:
        """Choose a policy, write it down, and look again whether another trial chose it at the same time.

        Of two writers at least the later one sees the other's claim and moves on; both may, then a policy is free for
        the next trial. Trials differ in their candidates by their number, so they do not chase each other.
        """
        dense = set() if self.dense_accuracy is None else {self.space.high.tobytes()}
        beaten: set[bytes] = set()
        while True:
            ledger, trials = self._read(study)
            for proposer, policy in self._candidates(study, trial, ledger, trials, beaten):
                key = policy.tobytes()
                if proposer != "repeat" and (key in beaten or key in dense or ledger.is_taken(key, trial.number)):
                    continue
                study._storage.set_trial_system_attr(trial._trial_id, CLAIM, policy.tolist())
                if proposer == "repeat" or not self._read(study)[0].is_taken(key, trial.number):
                    return proposer, policy
                beaten.add(key)
                break

    def _candidates(
        self, study: Study, trial: FrozenTrial, ledger: Ledger, trials: Sequence[FrozenTrial], beaten: set[bytes]
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """(acquisition function, policy) in the order to try them; the last, a repetition, is always there."""
        if len(ledger.policies) + len(ledger.pending.keys() - {trial.number}) < self.startup:
            yield from (("start", policy) for policy in self.design)
        yield from self._stored_batch(trial, trials)
        history = self.history(study, but=trial.number)
        yield from self._new_batch(study, trial, history)
        taken = history.taken | beaten
        yield from (("random", policy) for policy in unseen(self.space, self.caps, taken, 1))
        around = uniform(self.space, self.caps)
        yield from (("over", policy) for policy in unseen(self.space, (), taken, 1, start=around))
        repeats = history.policies if len(history.policies) else around[None]
        yield "repeat", repeats[trial.number % len(repeats)]

    @cached_property
    def _batch_key(self) -> str:
        """Names the system attribute of a batch: samplers with other caps or shares have other batches."""
        caps = [(cap.cost.unit, cap.limit) for cap in self.caps]
        described = json.dumps(
            [self.space.names, self.space.sizes, self.space.steps, caps, sorted(self.shares.items())]
        )
        return f"amc_search:batch:{hashlib.sha256(described.encode()).hexdigest()[:16]}"

    def _stored_batch(
        self, trial: FrozenTrial, trials: Sequence[FrozenTrial]
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """The newest batch, if a trial opened it less than its size of trials ago, in this process or another.

        While a running trial makes the next one, the newest there is, with its reserve: one fit a batch is enough.
        """
        opening, opened = f"{self._batch_key}:opening", 0
        for other in reversed(trials):
            age = trial.number - other.number
            if stored := other.system_attrs.get(self._batch_key):
                size = stored["size"]
                if age < size or opened:
                    policies = [(proposer, np.array(policy, dtype=np.int64)) for proposer, policy in stored["policies"]]
                    yield from policies if opened else policies[:size]
                return
            if age >= (self.batch or LARGEST_BATCH) * (3 if opened else 1):
                return
            opened += opening in other.system_attrs and not other.state.is_finished() and other.number != trial.number

    def _batch_size(self, history: History) -> int:
        """Trials until the next fit: each counts where little is known, and a fit costs more where much is."""
        if self.batch is not None:
            return self.batch
        wanted = max(1 + len(history.policies) // TRIALS_A_STEP, 1 + len(history.pending))
        return min(wanted, LARGEST_BATCH)

    def _new_batch(self, study: Study, trial: FrozenTrial, history: History) -> Iterable[tuple[str, NDArray[np.int64]]]:
        """Fit, propose, and leave the batch on this trial for those that follow."""
        study._storage.set_trial_system_attr(trial._trial_id, f"{self._batch_key}:opening", True)
        predictor = None
        if len(history.policies) >= FEWEST:
            predictor = self.make_predictor()
            accuracy = torch.as_tensor(history.accuracy, dtype=torch.float32)
            predictor.fit(self.space.fractions(history.policies), accuracy)
        size = self._batch_size(history)
        refused = np.array([np.frombuffer(key, dtype=np.int64) for key in sorted(history.failed)], dtype=np.int64)
        chosen = propose_by_function(
            self.space,
            self.caps,
            history.policies,
            history.accuracy,
            np.concatenate([history.pending, refused.reshape(-1, len(self.space))]),
            predictor=predictor,
            count=size + int(RESERVE * size),
            shares=self.shares,
            seed=(self.seed, trial.number + 1),
        )
        # The best of each acquisition function are the batch, the others its reserve.
        ranked = [
            ((place + 0.5) / len(policies), proposer, policy)
            for proposer, policies in chosen.items()
            for place, policy in enumerate(policies)
        ]
        named = [(proposer, policy) for _, proposer, policy in sorted(ranked, key=lambda entry: entry[0])]
        # Any stretch of the batch should hold every function: the study may stop, or many workers draw, at any point.
        order = np.random.default_rng((self.seed, trial.number)).permutation(min(size, len(named)))
        named = [*(named[index] for index in order), *named[len(order) :]]
        policies = [[proposer, policy.tolist()] for proposer, policy in named]
        study._storage.set_trial_system_attr(trial._trial_id, self._batch_key, {"size": size, "policies": policies})
        return named

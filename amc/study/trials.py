"""All trials of one protocol, kept for ever in an Optuna study named by the protocol's hash.

Each coordinate is an integer parameter under its group's name; the value is the accuracy; costs, loss and seconds are
user attributes. Optuna's dashboard and plots read it as it is, and any number of workers may share it by URL: each
claims a policy, measures it, and writes all of it at once. A trial whose worker died is marked as failed, and its
policy is free again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from amc.study.heartbeat import HEARTBEAT, Heartbeat, HeartbeatMonitor, measured_by, name_of, new_name
from amc.study.measure import Measure
from amc.study.objective import objective_values
from amc.study.storage import MEMORY, end_trial, open_storage, patiently, study_url
from amc.study.tally import Tally, is_counted, is_measured
from amc.study.trial import Protocol, Trial
from amc.system.errors import ModelError
from amc.system.progress import Progress
from amc_search import Space
from amc_search.history import CLAIM, policy_of
from amc_search.sampler import PROPOSER, search_space

FAILURES_IN_A_ROW = 8  # then the network or the machine is at fault, not the policy
LOOK_SECONDS = 0.25  # between two looks at the storage while others measure
INTERRUPTED, NOT_NEEDED = "interrupted", "not needed: the others had begun all that were asked for"
RECIPE, DENSE_ACCURACY = "recipe", "dense_accuracy"  # study attributes: what a worker needs to join

Policy = NDArray[np.int64]
Answer = TypeVar("Answer")


class Study:
    """Durable trials of one protocol."""

    def __init__(
        self,
        url: str | None,
        folder: Path | None,
        protocol: Protocol,
        space: Space,
        *,
        alone: bool = False,
        measure: Measure | None = None,
    ) -> None:
        """Open the study.

        Args:
            url: an Optuna storage; None: the SQLite file of the run folder, or, without one, this process's memory.
            folder: the run that measures for it, if any.
            protocol: names the study.
            space: the legal policies.
            alone: no other process is at work in the run folder: trials that run there still are marked as failed.
            measure: what measures a policy.

        Raises:
            StorageError: the storage cannot be reached or written.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.protocol, self.folder = space, protocol, folder
        self._measure = measure
        self.url = url or (study_url(folder) if folder else MEMORY)
        self.name = new_name(folder)
        self._storage = open_storage(self.url)
        self._say: Callable[[str], None] = lambda text: None
        self._watch = HeartbeatMonitor()
        self._known: dict[int, Trial] = {}
        self.done_here = 0  # trials that this process measured
        self._study = self._patiently(self._open, 0.0)
        if alone:
            home = name_of(folder)
            own = folder is not None and self.url == study_url(folder)  # nobody else measures into it
            self.mark_failed(lambda name: name.startswith(home) if name else own)

    @classmethod
    def of(cls, measure: Measure, url: str | None = None, folder: Path | None = None, *, alone: bool = False) -> Study:
        """The study of all that `measure` measures."""
        return cls(url, folder, measure.protocol(), measure.trace.space, alone=alone, measure=measure)

    @property
    def measure(self) -> Measure:
        """What measures a policy. Raises `ValueError` where the study was opened without it."""
        if self._measure is None:
            raise ValueError("a study measures only where it was opened with a measure; use `Study.of(measure, ...)`")
        return self._measure

    @property
    def optuna_study(self) -> optuna.Study:
        """Optuna's own study, for its dashboard and plots."""
        return self._study

    @cached_property
    def dense_accuracy(self) -> float:
        """The uncut network's own, on the whole validation split; measured once and kept with the study."""
        known = self.attribute(DENSE_ACCURACY)
        if known is None:
            known = self.measure.evaluate_whole(self.measure.model).accuracy
            self.set_attribute(DENSE_ACCURACY, known)
        return float(known)

    @property
    def trials(self) -> list[Trial]:
        """All measured trials, in the order they were started; those that were stopped early say so."""
        return [self._read(trial) for trial in self.measured]

    @property
    def measured(self) -> list[FrozenTrial]:
        """`trials` as Optuna has them."""
        return [trial for trial in self._all() if is_measured(trial)]

    def labels(self, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
        """What is learned from measured trials, (n,): see `amc.study.objective`."""
        return objective_values([self._read(trial) for trial in trials])

    @property
    def proposers(self) -> list[str]:
        """Which part of the search proposed each of `trials`; "candidate" where the policy was asked for by name."""
        return [str(trial.user_attrs.get(PROPOSER, "candidate")) for trial in self.measured]

    @property
    def failures(self) -> list[str]:
        """Why trials failed, one reason a trial."""
        failed = [trial for trial in self._all() if trial.state == TrialState.FAIL]
        reasons = [str(trial.user_attrs.get("reason", INTERRUPTED)) for trial in failed]
        return [reason for reason in reasons if reason != NOT_NEEDED]

    def describe(self, recipe: str, dense_accuracy: float) -> None:
        """Leave word for workers elsewhere: the resolved recipe, as TOML, and the dense network's accuracy."""
        for key, value in ((RECIPE, recipe), (DENSE_ACCURACY, dense_accuracy)):
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: object) -> None:
        """Leave a JSON-able value for whoever opens the study."""
        self._patiently(lambda: self._study.set_user_attr(key, value))

    def attribute(self, key: str) -> Any:
        """What was left under a key, or None."""
        return self._patiently(lambda: self._study.user_attrs.get(key))

    def run(
        self,
        measure: Callable[[Policy], Trial],
        sampler: optuna.samplers.BaseSampler,
        total: int,
        progress: Progress,
        title: str = "measure policies",
    ) -> None:
        """Go on until the study holds `total` measured trials, whoever measured them.

        Raises:
            ModelError: several trials in a row failed; the last reason is named.
            StorageError: a result could not be stored.
        """
        self._say = progress.say
        failed, showing = 0, Tally(progress, title, total)
        while not showing.done(self.measured):
            begun = self._patiently(lambda: self._begin(sampler, total))
            if begun is None:
                sleep(LOOK_SECONDS)
                continue
            reason = self._work(*begun, measure)
            failed = failed + 1 if reason else 0
            if failed >= FAILURES_IN_A_ROW:
                raise ModelError(f"{failed} policies in a row could not be measured; the last: {reason}")

    def follow(self, total: int, progress: Progress, poll: Callable[[int], None]) -> None:
        """Look on while others measure, until the study holds `total` measured trials.

        `poll` is called several times a second with how many trials there are; what it raises ends the waiting.
        """
        self._say = progress.say
        showing = Tally(progress, "measure policies", total)
        while not showing.done(measured := self.measured):
            poll(len(measured))
            self._patiently(lambda: self._mark_failed(self._watch.dead(self._study.get_trials(deepcopy=False))))
            sleep(LOOK_SECONDS)

    def measure_all(self, policies: Sequence[Policy], measure: Callable[[Policy], Trial]) -> list[Trial]:
        """The trials of given policies: those already measured in full are read, the others measured and kept.

        A policy that cannot be measured is missing from the answer. Nothing is queued in the storage: what a killed
        process had not begun leaves no trace there.
        """
        known = {trial.policy for trial in self.trials if not trial.stopped}
        wanted = [tuple(policy.tolist()) for policy in policies]
        for policy in dict.fromkeys(wanted):
            if policy not in known:
                self._work(*self._patiently(lambda policy=policy: self._create(policy)), measure)  # type: ignore[misc]
        found = {trial.policy: trial for trial in self.trials if not trial.stopped}
        return [found[policy] for policy in wanted if policy in found]

    def measure_one(self, policy: Policy, measure: Callable[[Policy], Trial]) -> Trial:
        """The trial of one policy that must be known.

        Raises:
            ModelError: it cannot be measured.
        """
        trials = self.measure_all([policy], measure)
        if not trials:
            raise ModelError(f"a policy that is needed could not be measured: {self.failures[-1]}")
        return trials[0]

    def mark_failed(self, is_dead: Callable[[str | None], bool]) -> None:
        """Mark running trials as failed by the name of who measures them, which may be missing."""
        self._patiently(
            lambda: self._mark_failed(t for t in self._study.get_trials(deepcopy=False) if is_dead(measured_by(t)))
        )

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            storage=self._storage,
            study_name=f"amc-{self.protocol.digest}",
            direction="maximize",
            load_if_exists=True,
        )
        if "protocol" not in study.user_attrs:
            study.set_user_attr("protocol", asdict(self.protocol))
        return study

    def _begin(self, sampler: optuna.samplers.BaseSampler, total: int) -> tuple[int, Policy] | None:
        """Claim a policy; None while trials that others have begun may be the last ones."""
        trials = self._study.get_trials(deepcopy=False)
        self._mark_failed([*self._watch.dead(trials), *(trial for trial in trials if measured_by(trial) == self.name)])
        if sum(is_counted(trial) for trial in trials) >= total:
            return None
        trial_id = self._create()[0]
        trials = self._study.get_trials(deepcopy=False)
        own = next(trial.number for trial in trials if trial._trial_id == trial_id)
        if sum(is_counted(trial) and (trial.number < own or is_measured(trial)) for trial in trials) >= total:
            end_trial(self._storage, trial_id, TrialState.FAIL, attributes={"reason": NOT_NEEDED})
            return None
        self._study.sampler = sampler
        try:
            with Heartbeat(self._storage, trial_id, self.name):
                return trial_id, self._propose(optuna.Trial(self._study, trial_id))
        except UpdateFinishedTrialError:  # taken for dead while it was choosing: another try
            return None

    def _propose(self, trial: optuna.Trial) -> Policy:
        kinds = search_space(self.space)
        proposed = trial.relative_params or {
            name: trial.suggest_int(name, kind.low, kind.high, step=kind.step) for name, kind in kinds.items()
        }
        return np.array([proposed[name] for name in self.space.names], dtype=np.int64)

    def _create(self, policy: Sequence[int] | None = None) -> tuple[int, Policy]:
        """A running trial of ours, in one transaction; with a policy, it is claimed."""
        claim = {} if policy is None else {CLAIM: list(policy)}
        template = create_trial(state=TrialState.RUNNING, system_attrs={HEARTBEAT: [self.name, 0], **claim})
        trial_id = self._storage.create_new_trial(self._study._study_id, template_trial=template)
        return trial_id, np.array(policy if policy else (), dtype=np.int64)

    def _work(self, trial_id: int, policy: Policy, measure: Callable[[Policy], Trial]) -> str | None:
        """Measure the policy of a trial and end it; returns why it failed, if it did."""
        try:
            with Heartbeat(self._storage, trial_id, self.name):
                result = measure(policy)
            if not (math.isfinite(result.accuracy) and math.isfinite(result.loss)):
                raise ModelError(f"accuracy and loss must be finite, but are {result.accuracy} and {result.loss}")
        except Exception as error:  # out of memory, NaN, a layer that cannot run: the trial is lost, not the study
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            self._end(trial_id, TrialState.FAIL, {"reason": reason}, policy)
            return reason
        except BaseException:
            with suppress(Exception):  # else who opens the study next will say so
                end_trial(self._storage, trial_id, TrialState.FAIL, attributes={"reason": INTERRUPTED})
            raise
        if not self._store(trial_id, policy, result):
            self._rescue(policy, result)
        self.done_here += 1
        return None

    def _store(self, trial_id: int, policy: Policy, result: Trial) -> bool:
        """Write a result; False if the trial is no longer ours to end and has no result."""
        attributes = {"costs": dict(result.costs), "loss": result.loss, "seconds": dict(result.seconds)}
        if result.images is not None:
            attributes["images"] = result.images
        state = TrialState.PRUNED if result.stopped else TrialState.COMPLETE
        return self._end(
            trial_id, state, attributes, policy, result.accuracy, result.images if result.stopped else None
        )

    def _end(
        self,
        trial_id: int,
        state: TrialState,
        attributes: dict[str, Any],
        policy: Policy,
        value: float | None = None,
        step: int | None = None,
    ) -> bool:
        def write() -> bool:
            written = self._storage.get_trial(trial_id)
            if written.state.is_finished():  # by an earlier try whose answer was lost, or by who took us for dead
                return written.state == state
            params: dict[str, tuple[int, BaseDistribution]] = {
                name: (int(count), kind)
                for count, (name, kind) in zip(policy, search_space(self.space).items(), strict=True)
                if name not in written.params
            }
            return end_trial(self._storage, trial_id, state, value, params, attributes, step)

        return self._patiently(write)

    def _rescue(self, policy: Policy, result: Trial) -> None:
        """Keep the result of a trial that was taken for dead: in a new one, unless its policy is in other hands now."""
        trial_id, _ = self._patiently(lambda: self._create(result.policy))
        others = (trial for trial in self._all() if trial._trial_id != trial_id and is_counted(trial))
        taken = (policy_of(trial, self.space) for trial in others)
        if any(other is not None and np.array_equal(other, policy) for other in taken):
            self._say(
                "a trial of this worker was taken for dead and its policy given to another: its result is dropped"
            )
            self._end(trial_id, TrialState.FAIL, {"reason": "measured by another worker meanwhile"}, policy)
        else:
            self._store(trial_id, policy, result)

    def _mark_failed(self, trials: Iterable[FrozenTrial]) -> None:
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                end_trial(self._storage, trial._trial_id, TrialState.FAIL, attributes={"reason": INTERRUPTED})

    def _all(self) -> list[FrozenTrial]:
        return self._patiently(lambda: self._study.get_trials(deepcopy=False))

    def _patiently(self, act: Callable[[], Answer], patience: float | None = None) -> Answer:
        return patiently(act, self.url, lambda text: self._say(text), patience)

    def _read(self, trial: FrozenTrial) -> Trial:
        if trial.number not in self._known:  # what is finished never changes
            policy = tuple(int(trial.params[name]) for name in self.space.names)
            costs, loss, seconds = (trial.user_attrs[key] for key in ("costs", "loss", "seconds"))
            assert trial.value is not None
            self._known[trial.number] = Trial(
                policy, costs, trial.value, loss, seconds,
                stopped=trial.state == TrialState.PRUNED, images=trial.user_attrs.get("images"),
            )  # fmt: skip
        return self._known[trial.number]

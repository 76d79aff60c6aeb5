"""All trials of one protocol, kept for ever in an Optuna study named by the protocol's hash.

Each coordinate is an integer parameter under its group's name; the value is the accuracy; costs, loss and seconds are
user attributes. Optuna's dashboard and plots read it as it is, and any number of workers may share it by URL.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from amc.errors import ModelError, StorageError
from amc.files import explain_storage
from amc.labels import labels_of
from amc.progress import Progress
from amc.trial import Protocol, Trial
from amc_search import Space
from amc_search.sampler import ARM

HEARTBEAT_SECONDS = 30
FAILURES_IN_A_ROW = 8  # then the network or the machine is at fault, not the policy


class Study:
    """Durable trials of one protocol."""

    def __init__(self, url: str | None, folder: Path, protocol: Protocol, space: Space, *, alone: bool = False) -> None:
        """Open the study at an Optuna storage `url`, or in the run folder's own SQLite file for None.

        `alone` says that no other process is at work on it: trials that still run are marked as failed.

        Raises:
            StorageError: the storage cannot be reached or written.
        """
        optuna.logging.set_verbosity(logging.ERROR)
        self.space, self.protocol = space, protocol
        self.path = folder / "study.db"
        self.url = url or f"sqlite:///{self.path.absolute()}"
        try:
            self._study = optuna.create_study(
                storage=_storage(self.url),
                study_name=f"amc-{protocol.digest}",
                direction="maximize",
                load_if_exists=True,
            )
            self._study.set_user_attr("protocol", asdict(protocol))
            if alone:  # what still runs was killed
                for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    self._study.tell(trial.number, state=TrialState.FAIL)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise StorageError(explain_storage(self._place, _cause(error))) from error
        except (ImportError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise StorageError(f"`study` must be an Optuna storage URL, but {self._place} gave: {first}") from None

    @property
    def trials(self) -> list[Trial]:
        """All finished trials, in the order they were started."""
        return [self._read(trial) for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]

    def labels(self, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
        """What is learned from complete trials, (n,): see `amc.labels`."""
        return labels_of([self._read(trial) for trial in trials])

    @property
    def arms(self) -> list[str]:
        """Which part of the search proposed each of `trials`; "candidate" where the policy was asked for by name."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [str(trial.user_attrs.get(ARM, "candidate")) for trial in complete]

    @property
    def failures(self) -> list[str]:
        """Why trials failed, one reason a trial."""
        failed = self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [str(trial.user_attrs.get("reason", "interrupted")) for trial in failed]

    def run(
        self,
        measure: Callable[[NDArray[np.int64]], Trial],
        sampler: optuna.samplers.BaseSampler,
        total: int,
        progress: Progress,
        title: str = "measure policies",
    ) -> None:
        """Go on until the study holds `total` finished trials, whoever measured them.

        Raises:
            ModelError: several trials in a row failed; the last reason is told.
            StorageError: a result could not be stored.
        """
        done = len(self.trials)
        if done >= total:
            return
        self._study.sampler = sampler
        stage = progress.stage(title, total)
        stage.advance(done)
        best, failed = 0.0, 0

        def count(study: optuna.Study, trial: FrozenTrial) -> None:
            nonlocal best, failed
            failed = failed + 1 if trial.state == TrialState.FAIL else 0
            if failed >= FAILURES_IN_A_ROW:
                raise ModelError(
                    f"{failed} policies in a row could not be measured; the last: {trial.user_attrs.get('reason')}"
                )
            if trial.state == TrialState.COMPLETE and trial.value is not None:
                best = max(best, trial.value)
                stage.advance(1, f"last {trial.value:.2%}, best {best:.2%}")
            if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= total:
                study.stop()

        self._optimize(measure, None, count)

    def measure_all(
        self, policies: Sequence[NDArray[np.int64]], measure: Callable[[NDArray[np.int64]], Trial]
    ) -> list[Trial]:
        """The trials of given policies: those already measured are read, the others measured and kept.

        A policy that cannot be measured is missing from the answer. Nothing is queued in the storage: what a killed
        process had not begun leaves no trace there.
        """
        known = {trial.policy for trial in self.trials}
        wanted = [tuple(policy.tolist()) for policy in policies]
        for policy in dict.fromkeys(wanted):
            if policy not in known:
                self._study.sampler = _Given(dict(zip(self.space.names, policy, strict=True)))
                self._optimize(measure, 1, None)
        found = {trial.policy: trial for trial in self.trials}
        return [found[policy] for policy in wanted if policy in found]

    def measure_one(self, policy: NDArray[np.int64], measure: Callable[[NDArray[np.int64]], Trial]) -> Trial:
        """The trial of one policy that must be known.

        Raises:
            ModelError: it cannot be measured.
        """
        trials = self.measure_all([policy], measure)
        if not trials:
            raise ModelError(f"a policy that is needed could not be measured: {self.failures[-1]}")
        return trials[0]

    def _optimize(
        self,
        measure: Callable[[NDArray[np.int64]], Trial],
        number: int | None,
        callback: Callable[[optuna.Study, FrozenTrial], None] | None,
    ) -> None:
        def objective(trial: optuna.Trial) -> float:
            grid = zip(self.space.names, self.space.steps, self.space.sizes, strict=True)
            policy = np.array([trial.suggest_int(name, step, size, step=step) for name, step, size in grid])
            try:
                result = measure(policy.astype(np.int64))
                if not (math.isfinite(result.accuracy) and math.isfinite(result.loss)):
                    raise ModelError(f"accuracy and loss must be finite, but are {result.accuracy} and {result.loss}")
            except Exception as error:  # out of memory, NaN, a layer that cannot run: the trial is lost, not the study
                first = (str(error).splitlines() or [""])[0]
                trial.set_user_attr("reason", f"{type(error).__name__}: {first}")
                raise
            for key in ("costs", "loss", "seconds"):
                value = getattr(result, key)
                trial.set_user_attr(key, dict(value) if key != "loss" else value)
            return result.accuracy

        try:
            self._study.optimize(
                objective, n_trials=number, catch=(Exception,), callbacks=[callback] if callback else None
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise StorageError(explain_storage(self._place, _cause(error))) from error

    @property
    def _place(self) -> str:
        """The storage as it may be shown to anyone: without a password."""
        return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", self.url.removeprefix("sqlite:///"))

    def _read(self, trial: FrozenTrial) -> Trial:
        policy = tuple(int(trial.params[name]) for name in self.space.names)
        attributes = trial.user_attrs
        assert trial.value is not None
        return Trial(policy, attributes["costs"], trial.value, attributes["loss"], attributes["seconds"])


class _Given(optuna.samplers.BaseSampler):
    """Proposes one policy."""

    def __init__(self, policy: dict[str, int]) -> None:
        self.policy = policy

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> int:
        return self.policy[param_name]


def _storage(url: str) -> optuna.storages.BaseStorage | str:
    if not url.startswith(("sqlite", "postgresql", "mysql")):
        return url
    with warnings.catch_warnings():  # heartbeats are stable enough for us: they only mark dead trials as failed
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(url, heartbeat_interval=HEARTBEAT_SECONDS)


def _cause(error: BaseException) -> BaseException:
    """The database driver's own words, which name the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    return OSError(28, "disk full") if "full" in text else error

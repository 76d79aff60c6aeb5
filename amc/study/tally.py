"""How many trials a study has, whoever measured them."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from amc.system.progress import Progress, Stage


def is_measured(trial: FrozenTrial) -> bool:
    """In full, or stopped early with what was seen."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "loss" in trial.user_attrs


def is_counted(trial: FrozenTrial) -> bool:
    """Measured, or on the way to it."""
    return trial.state == TrialState.RUNNING or is_measured(trial)


class Tally:
    """The bar of the measured trials, whoever measures them."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self.progress, self.title, self.total = progress, title, total
        self.stage: Stage | None = None
        self.shown = 0

    def done(self, measured: Sequence[FrozenTrial]) -> bool:
        """Show what is new; whether it is enough."""
        if self.stage is None and len(measured) < self.total:
            self.stage = self.progress.stage(self.title, self.total)
            self.stage.advance(len(measured))
        elif self.stage is not None and len(measured) > self.shown:
            values = [trial.value for trial in measured if trial.value is not None]
            whole = [
                trial.value for trial in measured if trial.value is not None and trial.state == TrialState.COMPLETE
            ]
            note = f"last {values[-1]:.2%}, best {max(whole, default=0.0):.2%}"
            self.stage.advance(len(measured) - self.shown, note)
        self.shown = len(measured)
        return self.shown >= self.total

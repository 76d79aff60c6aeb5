from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amc.job.retarget import retarget
from amc.job.run import Run
from amc.job.run_folder import RunFolder
from amc.job.show import details
from amc.system.progress import Silent
from amc.train.settings import FinetuneSchedule, RecoverySettings
from amc.train.short_distillation import short_record
from amc.zoo.task import CLASSIFICATION, load_task
from tests.conftest import finished_run
from tests.tiny import network


def squared(outputs: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A loss of the user's."""
    return (outputs - torch.nn.functional.one_hot(batch[1], 10)).square().mean()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, by two workers, whose trials take a few steps of training."""
    steps = {"recovery.steps": 3, "recovery.step_images": 50, "search.workers": 2}
    return finished_run(tmp_path_factory.mktemp("steps"), network, "50%", **steps)


@pytest.mark.slow
def test_workers_measure_what_this_process_would(run: Run) -> None:
    """Every trial of the run, whoever measured it, is what measuring its policy again gives."""
    assert len(run.study.trials) >= 10
    for trial in [trial for trial in run.study.trials if not trial.stopped][:3]:
        again = run.job.measure(np.array(trial.policy))
        assert (again.accuracy, again.loss) == pytest.approx((trial.accuracy, trial.loss))
        assert trial.seconds["train"] > 0


@pytest.mark.slow
def test_a_run_with_steps_is_retargeted_and_shown(run: Run, tmp_path: Path) -> None:
    """The measured accuracy of another budget is with the steps, and its network is the one that was measured."""
    found = retarget(run.folder, ["40%"], tmp_path / "other", 2, False, Silent()).record
    assert found["measured_accuracy"] in {trial.accuracy for trial in Run.open(run.folder).study.trials}
    assert "3 steps of training" in details(RunFolder.open(run.folder))


def test_the_record_of_steps_holds_the_users_loss() -> None:
    """Without steps nothing of it counts; with them another loss is another protocol."""
    recovery, finetune = RecoverySettings(steps=3), FinetuneSchedule()
    mine = load_task(loss=f"{__name__}:squared")
    assert short_record(RecoverySettings(), finetune, mine) == ""
    assert short_record(recovery, finetune, mine) != short_record(recovery, finetune, CLASSIFICATION)
    assert mine.fingerprint == CLASSIFICATION.fingerprint  # trials without steps do not ask for the loss

from __future__ import annotations

from pathlib import Path

from tests.conftest import finished_run
from tests.tiny import network


def test_a_fine_tune_that_does_harm_is_not_released(tmp_path: Path) -> None:
    """Steps far too long: the recovered network is what leaves the run, and the figures say so."""
    run = finished_run(tmp_path, network, "50%", **{"finetune.lr": 3.0, "finetune.epochs": 0.1})
    released = run.metrics["released"]
    assert released["measure_accuracy"] >= released["measure_accuracy_before_finetune"]
    assert released["test_accuracy"] == released["test_accuracy_before_finetune"] > 0.5


def test_figures_beside_each_other_are_of_the_same_pictures(tmp_path: Path) -> None:
    """Trials on few pictures, but what is reported before and after fine-tuning is of the whole validation split."""
    run = finished_run(tmp_path, network, "50%", **{"search.measure_images": 30, "finetune.epochs": 0})
    size = len(run.job.data.validation)
    for name in ("dense", "released", "uniform"):
        right = run.metrics[name]["measure_accuracy"] * size
        assert abs(right - round(right)) < 1e-6
    assert run.metrics["released"]["measure_accuracy_before_finetune"] == run.metrics["released"]["measure_accuracy"]

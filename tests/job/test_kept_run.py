"""A run that an earlier version of AMC made, kept in `kept_run/`: what was measured is kept for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import amc
from amc.job.front import front
from amc.job.run import Run
from amc.job.show import details

KEPT = Path(__file__).parent / "kept_run"
# What that version said of it.
OUTPUTS = [0.26005745, 0.27767581, 0.05718214, -0.02708189, -0.16193125, 0.09788184, 0.03077059, 0.25476053, 0.16297472,
           0.32845888]  # fmt: skip
TRIALS, PROTOCOL, POLICY_70, PREDICTED_70 = 12, "a7be82aade31", (8, 10), 0.1199863


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("AMC_TRUST", "tests.tiny")
    shutil.copytree(KEPT, tmp_path / "run")
    return amc.open_run(tmp_path / "run")


def test_its_release_loads_and_says_the_same(kept: Run) -> None:
    """The record and weights of an earlier version give the network that they gave then."""
    inputs = torch.linspace(-1, 1, 28 * 28 * 2).reshape(2, 1, 28, 28)
    with torch.no_grad():
        outputs = amc.load(kept.folder)(inputs)
    assert outputs[0].tolist() == pytest.approx(OUTPUTS, abs=1e-4)


def test_its_figures_are_shown(kept: Run) -> None:
    """Whatever `amc show` prints can be had from its files."""
    text = details(kept)
    assert "old: tests.tiny:network" in text and "12 trials measured" in text


def test_its_trials_are_found_and_another_budget_is_answered(kept: Run) -> None:
    """The study has its name of then, where device and torch are those of then; its predictor chooses as it did."""
    if kept.metrics["protocol"] != kept.job.measure.protocol().digest:
        pytest.skip("its trials were measured in bfloat16, by another torch: they would not hold here")
    assert kept.study.protocol.digest == PROTOCOL and len(kept.study.trials) == TRIALS
    found = kept.retarget("70%", candidates=0)
    assert found.policy.counts == POLICY_70 and found.policy.mean == pytest.approx(PREDICTED_70, abs=0.02)
    assert len(front(kept.folder, 4)["points"]) > 0

"""Cutting each group alone, before the first trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amc.job.job import Job, open_job
from amc.job.recipe import load_recipe
from amc.job.run import Run
from amc.study.measure import Measure
from amc.study.sensitivity import (
    LEVELS,
    SENSITIVITY,
    held_sensitivity,
    images_for,
    levels,
    measure_sensitivity,
    networks,
    sensitivity_curves,
    sensitivity_price,
)
from amc.study.settings import SearchSettings
from amc.study.trials import Study
from amc_search import Space
from tests.tiny import trained_weights


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Job:
    weights = trained_weights(tmp_path_factory.mktemp("sensitivity") / "dense.safetensors")
    wanted = {
        "model.name": "tests.tiny:network", "model.weights": str(weights), "data.name": "tests.tiny:pictures",
        "search.batch_size": 20, "search.sensitivity_images": 40, "recovery.moment_images": 200,
        "recovery.batchnorm_images": 100, "surgery.round_to": 1,
    }  # fmt: skip
    return open_job(load_recipe(None, wanted))


def study_of(dense: Job, folder: Path) -> Study:
    return Study.of(dense.measure, folder=folder, alone=True)


def test_a_curve_is_the_divergence_of_the_outputs_of_networks_cut_in_one_group(dense: Job) -> None:
    """Against the definition, by hand, on 40 pictures, all networks with BatchNorm settled on the same few."""
    curves = sensitivity_curves(dense.measure, dense.recipe.search)
    group, level = 1, 2
    policy = dense.space.high.copy()
    policy[group] = levels(dense.space, group)[level]
    rough = dense.measure.rough(40, 20)
    small = rough.realise(policy).eval()
    images = [batch[0] for batch in dense.measure.validation.batches(20, seed=3, limit=40)]
    with torch.no_grad(), dense.compute.autocast():
        pair = small, rough.realise(dense.space.high).eval()
        ours, theirs = (torch.cat([net(x).float() for x in images]).log_softmax(1) for net in pair)
    wanted = float((theirs.exp() * (theirs - ours)).sum(1).mean())
    kept, moved = curves[group]
    assert kept[level] == policy[group] / dense.space.high[group]
    assert moved[level] == pytest.approx(wanted, rel=0.02, abs=1e-4)
    assert len(curves) == len(dense.space) and all(min(lost) >= -1e-6 for _, lost in curves)


def test_levels_are_legal_rising_and_never_the_whole_group() -> None:
    """Zero only where a group may be dropped; a group with one legal count has none."""
    space = Space(("wide", "dropped", "fixed"), (64, 64, 8), (4, 8, 8), (False, True, False))
    assert levels(space, 0).tolist() == [4, 8, 20, 40]
    assert levels(space, 1).tolist() == [0, 8, 16, 40]
    assert levels(space, 2).tolist() == []
    assert networks(space) == 8 == 2 * len(LEVELS)


def test_the_price_counts_the_pictures_that_pass_through_networks(dense: Job) -> None:
    """All networks, on 40 pictures and half as many for BatchNorm, over the 100 + 100 of a trial, rounded up."""
    assert sensitivity_price(dense.measure, dense.recipe.search) == -(-networks(dense.space) * 60 // 200)


def test_a_short_search_pays_for_fewer_pictures_or_none(dense: Job) -> None:
    """At most a quarter of its trials' pictures; below 32 pictures the curves are not worth it."""

    def of(trials: int) -> tuple[Measure, SearchSettings]:
        return dense.measure, dense.recipe.search.model_copy(update={"trials": trials})

    assert [images_for(*of(trials)) for trials in (1, 5, 8, 9, 100)] == [0, 0, 38, 40, 40]
    assert all(sensitivity_price(*of(trials)) <= -(-trials // 4) for trials in (8, 9, 100))
    assert sensitivity_curves(*of(1)) == [] and sensitivity_price(*of(1)) == 0


def test_curves_are_measured_once_and_kept_with_the_study(
    dense: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens the study reads them; with 0 images wanted none are measured."""
    study = study_of(dense, tmp_path)
    none = dense.recipe.search.model_copy(update={"sensitivity_images": 0})
    measure_sensitivity(study, none)
    assert held_sensitivity(study) is None
    measure_sensitivity(study, dense.recipe.search)
    first = held_sensitivity(study)

    def fail(*_: object) -> object:
        raise AssertionError("measured again")

    monkeypatch.setattr("amc.study.sensitivity.sensitivity_curves", fail)
    measure_sensitivity(study_of(dense, tmp_path), dense.recipe.search)
    again = held_sensitivity(study_of(dense, tmp_path))
    assert first is not None and again is not None and torch.equal(first.loss, again.loss)


def test_outputs_that_do_not_correspond_give_no_curves(
    dense: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector's boxes cannot be compared: the search then goes on without, and does not try again."""
    monkeypatch.setattr(type(dense.task), "distil", lambda *_: None)
    study = study_of(dense, tmp_path)
    measure_sensitivity(study, dense.recipe.search)
    assert held_sensitivity(study) is None and study.attribute(SENSITIVITY) == []


def test_a_network_whose_outputs_are_not_finite_leaves_its_knot_out(
    dense: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrecked network does not end the run."""
    whole: Any = type(dense.measure).realise

    def wrecked(self: Any, policy: np.ndarray[Any, Any]) -> nn.Module:
        small: nn.Module = whole(self, policy)
        if policy[0] == levels(dense.space, 0)[1]:
            small.get_parameter("fc.bias").data.fill_(torch.nan)
        return small

    monkeypatch.setattr(type(dense.measure), "realise", wrecked)
    (kept, moved), *_ = sensitivity_curves(dense.measure, dense.recipe.search)
    assert len(kept) == len(moved) == len(levels(dense.space, 0)) - 1


def test_a_run_is_searched_and_retargeted_with_its_sensitivity(tiny_run: Run) -> None:
    """The kept predictor holds the curves of the run's study, so that a new budget needs nothing measured anew."""
    told = tiny_run.predictor.sensitivity
    assert told is not None and told.loss.shape[0] == len(tiny_run.job.space) and float(told.loss.max()) > 0

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from amc.bench.ascent import ascent_text
from amc.bench.cut import bench_cut, cut_text
from amc.bench.images import resized
from amc.bench.rounding import bench_rounding, rounding_text
from amc.bench.stop import bench_stop, stop_text
from amc.bench.trial import bench_trial, trial_recipe, trial_text
from amc.cli import app
from amc.job.recipe import Recipe, load_recipe
from amc.job.run import Run
from amc.system.errors import BudgetUnreachable
from amc.system.progress import Silent
from amc_search import ascent
from tests.tiny import trained_weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    weights = trained_weights(tmp_path_factory.mktemp("bench") / "dense.safetensors")
    return load_recipe(
        None,
        {
            "model.name": "tests.tiny:network", "model.weights": str(weights), "data.name": "tests.tiny:pictures",
            "budget": ["50%"], "search.batch_size": 20, "search.candidates": 2, "recovery.moment_images": 100,
            "recovery.batchnorm_images": 60,
        },
    )  # fmt: skip


def test_cutting_is_timed_beside_torch_pruning() -> None:
    """A row has both times and their ratio, the table a line a network and the median."""
    row = bench_cut(load_recipe(None, {"model.name": "resnet20", "model.weights": "none"}), 32)
    assert row["ratio"] == pytest.approx(row["torch_pruning_seconds"] / row["cut_seconds"]) and row["groups"] > 5
    failed = {**row, "model": "other", "ratio": None, "torch_pruning_seconds": None}
    lines = cut_text([row, row, failed]).splitlines()
    assert len(lines) == 5 and "fails" in lines[3] and lines[4].startswith("median")


def test_a_trial_is_timed_in_parts(tiny: Recipe) -> None:
    """The whole is at least the sum of its parts, and stands beside the bare forward passes."""
    row = bench_trial(tiny, 2, Silent())
    parts = [row[part] for part in ("cut", "fold", "batchnorm", "evaluate", "store")]
    assert min(parts) > 0 and row["whole"] > 0 and row["bare"] > 0 and row["ratio"] > 0
    assert len(trial_text([row, row]).splitlines()) == 4


def test_every_network_has_images_of_its_own_kind() -> None:
    """ResNet-20 is the quickstart; others get the images enlarged, in three channels, without the rest of them."""
    assert trial_recipe("resnet20", 64, 1).name == "quickstart"
    assert trial_recipe("resnet18", 48, 1).data.size == 48
    splits = resized(32)
    assert splits.input_shape == (3, 32, 32) and len(splits.validation) == 1000
    inputs, labels = next(iter(splits.validation.batches(10)))
    assert inputs.shape == (10, 3, 32, 32) and (inputs[:, 0] == inputs[:, 2]).all() and len(labels) == 10


def test_searches_with_and_without_stopping_are_compared(tiny: Recipe) -> None:
    """Both kinds of search of each seed choose a policy; without stopping, every image is seen."""
    found = bench_stop(tiny, 12, 1, Silent())
    whole, stopped = found["rows"][0]["whole"], found["rows"][0]["stopped"]
    assert whole["stopped"] == 0 and whole["images"] == 1.0 and 0 < stopped["images"] <= 1.0
    assert 0 <= stopped["held_out_accuracy"] <= 1 and found["held_out_images"] < 400
    assert "time saved" in stop_text(found)


def test_the_step_is_told_in_a_table(tiny: Recipe) -> None:
    """A network without wide layers has nothing to show but the default."""
    row = bench_rounding(tiny)
    assert row["step"] == 8 and "8" in rounding_text([row]).splitlines()[1]


def test_no_ascent_that_lacks_a_part_is_better(shallow_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole ascent's bound is the highest under every budget, but for what its last moves leave to chance."""
    monkeypatch.setattr(ascent, "ENUMERABLE", 0)  # so small a space is not searched otherwise
    command = ["bench", "ascent", str(shallow_run.folder), "--quiet", "--budget"]
    done = CliRunner().invoke(app, [*command, "20%", "--budget", "60%", "--seeds", "2", "--json"])
    found = json.loads(done.stdout)
    for budget in ("20%", "60%"):
        bounds = {row["ascent"]: row["bound"] for row in found["rows"] if row["budget"] == budget}
        assert len(bounds) == 4 and bounds["the whole ascent"] >= max(bounds.values()) - 0.002
    assert [line.split()[0] for line in ascent_text(found).splitlines()[2:]] == ["20%", "60%", "seconds"]
    assert isinstance(CliRunner().invoke(app, [*command, "0.001%"]).exception, BudgetUnreachable)

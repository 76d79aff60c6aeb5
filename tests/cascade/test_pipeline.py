"""`amc cascade` from a finished run to a kept cascade that does what was told of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import amc
import amc.cli as cli
from amc.cascade.planning.constraints import Constraints
from amc.cascade.planning.pipeline import plan_cascade
from amc.cascade.serving.saved_cascade import open_cascade
from amc.job.run import Run
from amc.system.errors import BudgetUnreachable, RunError, UsageError
from amc.system.progress import Silent


@pytest.fixture(scope="module")
def own_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cascade") / "run"
    shutil.copytree(tiny_run.folder, folder)
    return folder


@pytest.mark.parametrize("method", ["tinysaver", "pcee"])
def test_what_is_told_of_the_test_split_is_what_the_kept_cascade_does(own_run: Path, method: str) -> None:
    """Accuracy and mean cost of the record are those of the loaded cascade, up to an image or two."""
    result = plan_cascade(own_run, Constraints(budget="80%"), Silent(), method=method, train=1)
    run, record = Run.open(own_run), result.record
    inputs, labels = next(iter(run.job.data.test.batches(len(run.job.data.test))))
    answers = amc.load_cascade(record["folder"]).run(inputs)
    reported = record["test"]["plan"]
    assert float((answers.predictions == labels).double().mean()) == pytest.approx(reported["accuracy"], abs=0.011)
    assert float(answers.cost.mean()) == pytest.approx(reported["cost"]["mean"], rel=0.02)
    assert reported["worst_cost"] <= 2 * record["dense"]["macs"] and sum(e["share"] for e in reported["exits"]) == 1.0
    assert record["plan"]["certified"]["mean_cost"] <= 0.8 * record["dense"]["macs"]
    assert record["test"]["static"]["accuracy"] >= 0 and json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["plan"]["name"] in result.text and record["terms"]["asked"] in result.text


def test_terms_that_cannot_be_met_end_with_exit_code_3_and_write_no_cascade(
    own_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Library and command agree, and the message names the flag."""
    with pytest.raises(BudgetUnreachable, match="best certified"):
        plan_cascade(own_run, Constraints(accuracy=0.999), Silent(), method="tinysaver", train=0)
    asked = ["amc", "cascade", str(own_run), "--max-cost", "0.01%", "--train", "0", "--method", "tinysaver", "--quiet"]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3 and "--max-cost" in capsys.readouterr().err
    assert not any((own_run / "cascade").glob("*0.01%*")) if (own_run / "cascade").exists() else True


def test_a_certified_figure_never_breaks_the_terms_that_were_asked(own_run: Path) -> None:
    """Certified drop and largest cost lie within what was asked."""
    record = plan_cascade(
        own_run, Constraints(max_drop=0.3, max_cost="150%"), Silent(), method="tinysaver", train=0
    ).record
    assert record["plan"]["certified"]["drop"] <= 0.3
    assert record["plan"]["certified"]["max_cost"] <= 1.5 * record["dense"]["macs"]


def test_an_independent_network_stands_among_the_others(own_run: Path, tmp_path: Path) -> None:
    """A network named by the user becomes a member, and the cascade goes where `out` says."""
    weights = next(Path(Run.open(own_run).recipe.model.weights).parent.glob("dense.safetensors"))
    stranger = f"tests.tiny:network={weights}"
    record = plan_cascade(
        own_run,
        Constraints(budget="90%"),
        Silent(),
        method="tinysaver",
        external=[stranger],
        train=0,
        out=tmp_path / "out",
    ).record
    assert "external" in {member["origin"] for member in record["members"]}
    assert open_cascade(tmp_path / "out").record["terms"]["budget"] == "90%"


def test_methods_and_folders_that_there_are_not_are_told(own_run: Path, tmp_path: Path) -> None:
    """Each mistake names the flag or the methods there are."""
    with pytest.raises(UsageError, match="pcee-ws"):
        plan_cascade(own_run, Constraints(budget="50%"), Silent(), method="magic")
    with pytest.raises(UsageError, match="--train"):
        plan_cascade(own_run, Constraints(budget="50%"), Silent(), train=-1)
    with pytest.raises(RunError):
        plan_cascade(tmp_path, Constraints(budget="50%"), Silent())


def test_a_cascade_runs_in_any_number_format(own_run: Path) -> None:
    """Loaded on the CPU as it is, in full precision, it gives finite answers for every input."""
    record = plan_cascade(own_run, Constraints(budget="60%"), Silent(), method="tinysaver", train=0).record
    found = open_cascade(record["folder"])
    answers = found.cascade.run(torch.zeros(5, *found.input_shape))
    assert answers.logits.shape[0] == 5 and bool(answers.logits.isfinite().all())


def test_a_folder_that_holds_other_files_is_never_replaced_by_a_cascade(own_run: Path, tmp_path: Path) -> None:
    """`out` on a folder, a file or the working folder is refused and nothing is lost."""
    kept = tmp_path / "thesis.txt"
    kept.write_text("years")
    for out in (tmp_path, kept, Path(".")):
        with pytest.raises(RunError, match="--out"):
            plan_cascade(own_run, Constraints(max_cost="100%"), Silent(), method="tinysaver", train=0, out=out)
    assert kept.read_text() == "years"

"""Where a run's trials are kept: found by the protocol, not by the run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc.job.compress import compress
from amc.job.job import study_location
from amc.job.recipe import Recipe, amended
from amc.job.run import Run
from amc.job.worker import work
from amc.system.progress import Silent


def of(run: Run, **changes: object) -> Recipe:
    return amended(run.recipe, {"finetune.epochs": 0, "search.candidates": 1, **changes})


def test_a_new_run_of_the_same_protocol_measures_nothing_twice(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default all runs of a user share one file: another folder, budget or fine-tune finds its trials there."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    shared = {"search.study": None, "out": str(tmp_path / "first"), "search.trials": 6}
    table = of(tiny_run, **shared).model_dump(exclude_none=True)
    table["search"].pop("study", None)
    first = compress(Recipe.model_validate(table))
    table["out"], table["budget"] = str(tmp_path / "second"), ["60%"]
    second = compress(Recipe.model_validate(table))
    assert (tmp_path / "data" / "amc" / "studies.db").is_file() and not (first.folder / "study.db").exists()
    assert first.study.protocol == second.study.protocol
    policies = [trial.policy for trial in second.study.trials]
    assert len(policies) == len(set(policies)) and first.metrics["trials"] <= len(policies) <= 6 + 2 * 3


def test_the_recipe_may_name_the_place(tiny_run: Run, tmp_path: Path) -> None:
    """`run` is the run's own file, a URL is itself; a folder that holds a study of its own keeps to it."""
    assert study_location(of(tiny_run, **{"search.study": "run"}), tmp_path) == f"sqlite:///{tmp_path}/study.db"
    assert study_location(of(tiny_run, **{"search.study": "sqlite:///x.db"}), tmp_path) == "sqlite:///x.db"
    without = tiny_run.recipe.model_copy(update={"search": tiny_run.recipe.search.model_copy(update={"study": None})})
    assert "studies.db" in study_location(without, tmp_path)
    (tmp_path / "study.db").touch()
    assert study_location(without, tmp_path) == f"sqlite:///{tmp_path}/study.db"


def test_a_worker_of_a_run_joins_the_runs_own_study(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared file may hold many studies: the run folder says which one is meant."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name, batch_size in (("one", 50), ("two", 25)):  # two protocols
        table = of(tiny_run, **{"out": str(tmp_path / name), "search.trials": 4, "search.batch_size": batch_size})
        written = table.model_dump(exclude_none=True)
        written["search"].pop("study")
        compress(Recipe.model_validate(written))
    done = work(str(tmp_path / "two"), Silent())
    assert done["study"] == f"amc-{Run.open(tmp_path / 'two').study.protocol.digest}" and done["measured_here"] == 0

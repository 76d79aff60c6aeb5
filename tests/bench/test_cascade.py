"""Studies of dynamic inference: kept seed by seed, summed up with intervals, judged by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.bench.cascade.studies import STUDIES, bench_cascade
from amc.bench.cascade.study_goals import StudyGoal, summary, summary_text
from amc.bench.cascade.study_recipe import CascadeRecipe, list_cascade_recipes, load_cascade_recipe
from amc.bench.deadline import Unfinished
from amc.cli.recipes import recipes
from amc.job.run import Run
from amc.system.errors import UsageError
from amc.system.progress import Silent

FIGURES = st.lists(st.floats(-1, 1), min_size=3, max_size=6)


@given(FIGURES, st.floats(-1, 1))
def test_a_goal_is_met_only_where_its_whole_interval_lies_on_the_right_side(values: list[float], bound: float) -> None:
    """MET and NOT MET each need the mean on their side, and no figure fails a bound from both sides."""
    verdict = StudyGoal("", "figure", least=bound).judge(values)
    opposite = StudyGoal("", "figure", most=bound).judge(values)
    mean = sum(values) / len(values)
    assert verdict != "MET" or mean >= bound - 1e-12
    assert verdict != "NOT MET" or mean <= bound + 1e-12
    assert not (verdict == "NOT MET" and opposite == "NOT MET")


def test_fewer_than_three_seeds_that_differ_give_no_verdict_and_none_no_measurement() -> None:
    """Two different values CANNOT TELL, two equal ones can, and an empty list is NOT MEASURED."""
    goal = StudyGoal("", "figure", least=0.0)
    assert goal.judge([1.0, 2.0]) == "CANNOT TELL" and goal.judge([]) == "NOT MEASURED"
    assert goal.judge([1.0, 1.0]) == "MET"


def test_a_summary_names_every_figure_and_goal_of_every_ground() -> None:
    """A goal whose figure is missing somewhere is NOT MEASURED there, and the text says so."""
    goals = [StudyGoal("large enough", "size", least=1.0)]
    found = summary({"here": {0: {"size": 2.0}, 1: {"size": 2.0}}, "there": {0: {"other": 1.0}}}, goals)
    assert found["here"]["figures"]["size"]["mean"] == 2.0
    assert [found[context]["goals"][0]["verdict"] for context in found] == ["MET", "NOT MEASURED"]
    text = summary_text(found)
    assert "here" in text and "other" in text and "NOT MEASURED: large enough" in text


def test_every_built_in_recipe_names_its_file_and_a_study_that_there_is() -> None:
    """Each built-in recipe loads under its own name, describes itself and asks for a known study."""
    for name in list_cascade_recipes():
        recipe = load_cascade_recipe(name)
        assert recipe.name == name and recipe.study in STUDIES and recipe.about


def test_amc_recipes_lists_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    """`amc recipes` prints the description of each one, and the command that runs it."""
    recipes()
    assert "amc bench cascade" in (reported := capsys.readouterr().out)
    assert all(about in reported for about in list_cascade_recipes().values())


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("study = 'plans'", "on"),
        ("study = 'magic'\n[[on]]\nrecipe = 'quickstart'", "study"),
        ("study = 'plans'\n[[on]]\nrecipe = 'quickstar'", "quickstart"),
        ("study = 'plans'\nbudgets = ['a lot']\n[[on]]\nrecipe = 'quickstart'", "a lot"),
        ("study = ", "TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_told_before_anything_is_run(tmp_path: Path, text: str, reported: str) -> None:
    """Loading fails with a message that names the wrong value."""
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=reported):
        load_cascade_recipe(tmp_path / "mine.toml")


@pytest.fixture(scope="module")
def runs(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, beside it the recipe that its one run was made by."""
    folder = tmp_path_factory.mktemp("studies")
    shutil.copytree(tiny_run.folder, folder / "runs" / "tiny")
    shutil.copy(tiny_run.folder / "recipe.toml", folder / "tiny.toml")
    return folder / "runs"


def study(name: str, runs: Path, seeds: int = 1) -> CascadeRecipe:
    table = {"name": name, "study": name, "seeds": seeds, "budgets": ["60%"]}
    return CascadeRecipe.model_validate({**table, "on": [{"recipe": str(runs.parent / "tiny.toml")}]})


def test_seeds_that_are_done_are_not_done_again_and_another_study_is_refused(runs: Path, tmp_path: Path) -> None:
    """A second run with more seeds adds only those that are missing; a folder belongs to one study."""
    first = bench_cascade(study("exits", runs), tmp_path, runs, Silent())
    kept = (tmp_path / "tiny-0.json").stat().st_mtime_ns
    second = bench_cascade(study("exits", runs, seeds=2), tmp_path, runs, Silent())
    assert (tmp_path / "tiny-0.json").stat().st_mtime_ns == kept
    figures = second["grounds"]["tiny"]["figures"]
    assert all(found["n"] == 2 for found in figures.values())
    assert figures.keys() == first["grounds"]["tiny"]["figures"].keys()
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(second, allow_nan=False))
    with pytest.raises(UsageError, match="another --out"):
        bench_cascade(study("savers", runs), tmp_path, runs, Silent())


def test_a_study_out_of_time_ends_as_an_interrupted_command_does(runs: Path, tmp_path: Path) -> None:
    """With no minutes left it raises `Unfinished`, exit code 130."""
    with pytest.raises(Unfinished) as stop:
        bench_cascade(study("exits", runs), tmp_path, runs, Silent(), minutes=0)
    assert stop.value.exit_code == 130


@pytest.mark.parametrize("name", ["exits-joint", "savers", "risk", "plans", "speed"])
def test_every_study_gives_finite_figures_for_each_of_its_goals(name: str, runs: Path, tmp_path: Path) -> None:
    """On a tiny run every goal has its figure, and none is NaN or infinite."""
    found = bench_cascade(study(name, runs), tmp_path, runs, Silent())
    json.dumps(found, allow_nan=False)
    missing = [goal for goal in found["grounds"]["tiny"]["goals"] if goal["verdict"] == "NOT MEASURED"]
    assert [goal["figure"] for goal in missing] in ([], ["gain at 25%"])  # the tiny run is looked at at 60 %

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from amc.bench.deadline import Deadline, Unfinished
from amc.bench.search_methods import flow
from amc.bench.search_methods.bench_recipe import BenchRecipe, list_bench_recipes, load_bench_recipe
from amc.bench.search_methods.context import POLICY
from amc.bench.search_methods.flow import Scope, bench_methods
from amc.bench.search_methods.orders import read_order
from amc.bench.search_methods.searches import Spec, read_search, specs_of
from amc.bench.search_methods.tables import table_markdown, table_text
from amc.bench.store import Store
from amc.job.job import Job
from amc.job.recipe import recipes_folder
from amc.study.measure import Measure
from amc.system.errors import BudgetUnreachable, RunError, UsageError
from amc_search import random_policies, uniform
from amc_search.baselines.extra import MissingExtra
from amc_search.baselines.problem import Method, Problem
from tests.tiny import trained_weights

RECIPE = """
about = "tests"
recipe = "{ordinary}"
caps = ["40%", ["60%", "70%params"]]
trials = 4
seeds = 2
methods = ["amc", "other", "uniform"]
long = 6
long_seeds = 1
long_methods = ["other"]
finetune = ["amc", "other"]
finetune_seeds = 2
finetune_searches = 1
finetune_random = 2
rank = 5

[set]
search.batch_size = 50
finetune.epochs = 0.1
"""

ORDINARY = """
name = "ordinary"
[model]
name = "tests.tiny:network"
weights = "{weights}"
[data]
name = "tests.tiny:pictures"
[surgery]
round_to = 1
[recovery]
moment_images = 100
batchnorm_images = 60
[finetune]
batch_size = 50
"""


def drawn(offset: int) -> Method:
    """A method that measures random policies, one by one, with a draw that depends on the values so far."""

    def search(problem: Problem) -> None:
        for turn in range(1000):
            if not problem.left:
                return
            total = round(1e6 * float(problem.values.sum()))
            rng = np.random.default_rng([problem.seed, offset, turn, total])
            problem.measure(random_policies(problem.space, problem.caps, 1, rng)[0])

    return search


def methods(job: Job) -> Mapping[str, Method]:
    plain: Method = lambda problem: void(problem.measure(uniform(problem.space, problem.caps)))  # noqa: E731
    return {"amc": drawn(0), "other": drawn(1), "uniform": plain}


def void(_: float) -> None:
    return None


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bench")
    trained_weights(home / "dense.safetensors")
    (home / "ordinary.toml").write_text(ORDINARY.format(weights=home / "dense.safetensors"))
    (home / "small.toml").write_text(RECIPE.format(ordinary=home / "ordinary.toml"))
    return home


@pytest.fixture(scope="module")
def recipe(home: Path) -> BenchRecipe:
    return load_bench_recipe(home / "small.toml")


@pytest.fixture(scope="module")
def finished(home: Path, recipe: BenchRecipe) -> Path:
    """The folder of a comparison that ran to its end without a stop. Shared: read it only."""
    bench_methods(recipe, home / "finished", methods=methods)
    return home / "finished"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every policy that is truly measured, in order."""
    measured: list[tuple[int, ...]] = []
    honest = Measure.__call__

    def count(self: Measure, policy: Any, *args: Any, **more: Any) -> Any:
        measured.append(tuple(policy.tolist()))
        return honest(self, policy, *args, **more)

    monkeypatch.setattr(Measure, "__call__", count)
    return measured


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same however often a comparison was stopped: all but seconds."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(of) for key, of in value.items() if "seconds" not in key}
        return value

    record: dict[str, Any] = timeless(json.loads((folder / "results.json").read_text()))
    return record


def test_all_searches_stand_in_breadth_first_order(recipe: BenchRecipe) -> None:
    """Every method has its first seed before any has its second, and short searches come before long ones."""
    specs = specs_of(recipe)
    assert len(specs) == 2 * 2 * 3 + 1 * 2 * 1 == len(set(specs))
    assert [spec.seed for spec in specs[:12]] == [0] * 6 + [1] * 6 and specs[-1].trials == 6
    assert {spec.method for spec in specs_of(recipe, ["other"])} == {"other"}


def test_a_comparison_fills_its_folder(finished: Path, recipe: BenchRecipe) -> None:
    """Every search, order and final of the recipe is there, with its figures, its goals and its machine."""
    found = outcome(finished)
    assert found["progress"]["searches"] == found["progress"]["searches_wanted"] == 14
    for cap in ("40%", "60%+70%params"):
        rows = found["figures"]["searches"][cap]
        assert set(rows["4"]) == {"amc", "other", "uniform"} and set(rows["6"]) == {"other"}
        assert rows["4"]["other"]["ours_minus"]["n"] == 2 and rows["4"]["amc"]["ours_minus"] is None
        assert sorted(row["place"] for row in rows["4"].values())[0] == 1
        tuned = found["figures"]["finals"][cap]
        assert set(tuned["methods"]) == {"amc", "other", "uniform"} and tuned["noise_of_data_order"] >= 0
        assert -1 <= found["figures"]["orders"][cap]["4"]["kendall"]["mean"] <= 1
    assert {goal["verdict"] for goal in found["goals"]} == {"cannot tell"} and len(found["goals"]) == 4
    assert not any(goal["missing"] for goal in found["goals"])
    plain = found["figures"]["searches"]["40%"]["4"]["uniform"]
    assert (plain["n"], plain["low"], plain["deterministic"], plain["ours_minus"]["n"]) == (1, None, True, 2)
    assert found["machine"]["cores"] and found["machine"]["versions"]["torch"]
    page = (finished / "plots.html").read_text()
    assert "Plotly" in page and 'src="http' not in page and page.count("Plotly.newPlot(") >= 6


def test_no_policy_is_measured_twice(home: Path, recipe: BenchRecipe, counted: list[tuple[int, ...]]) -> None:
    """Methods, seeds and caps share every trial, and each counts the seconds it took."""
    bench_methods(recipe, home / "counted", methods=methods)
    assert len(counted) == len(set(counted)) > 10
    searches = [json.loads(path.read_text()) for path in (home / "counted").rglob("searches/uniform/40%-4-*.json")]
    assert len(searches) == 2 and searches[0]["trial_seconds"] == searches[1]["trial_seconds"] != [0.0]
    before = len(counted)
    bench_methods(recipe, home / "counted", methods=methods)
    assert len(counted) == before


def test_a_comparison_stopped_anywhere_ends_with_the_same_results(
    home: Path, recipe: BenchRecipe, finished: Path, counted: list[tuple[int, ...]]
) -> None:
    """Stopped again and again between trials and epochs, it measures nothing twice and finds the same."""
    folder, stops = home / "stopped", 0
    while stops < 12:
        ticks = iter([0.0] * 24 + [1e9] * 10_000)
        try:
            bench_methods(recipe, folder, methods=methods, deadline=Deadline(1, lambda ticks=ticks: next(ticks)))
            break
        except Unfinished as error:
            assert error.exit_code == 130 and "the same command goes on" in str(error)
            stops += 1
    assert 2 < stops < 12 and len(counted) == len(set(counted))
    assert outcome(folder) == outcome(finished)


def test_the_test_split_is_touched_once_a_network(
    home: Path, recipe: BenchRecipe, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fine-tuned network, and the dense one, is tested once, and never again when the comparison goes on."""
    tested: list[int] = []
    honest = Measure.evaluate_whole

    def count(self: Measure, model: Any, split: Any = None) -> Any:
        if split is not None:  # the validation split goes without saying
            tested.append(len(split))
        return honest(self, model, split)

    monkeypatch.setattr(Measure, "evaluate_whole", count)
    bench_methods(recipe, home / "tested", methods=methods)
    policies = outcome(home / "tested")["progress"]["finals"]
    assert len(tested) == policies + 1 and set(tested) == {100}
    bench_methods(recipe, home / "tested", methods=methods)
    bench_methods(recipe, finished, Scope(report_only=True))
    assert len(tested) == policies + 1


def test_an_order_belongs_to_one_very_search(finished: Path) -> None:
    """Another search, or another number of fresh policies, is tested anew."""
    (folder,) = finished.glob("*/likelihood")
    found = read_search(Spec("amc", "40%", 4, 0), folder)
    assert found is not None and read_order(found, folder, 5) is not None
    assert read_order(found, folder, 6) is None
    assert read_order(replace(found, values=[0.5, *found.values[1:]]), folder, 5) is None


def test_a_report_measures_nothing(home: Path, recipe: BenchRecipe, counted: list[tuple[int, ...]]) -> None:
    """Of a bench just begun it says that no goal was measured."""
    with pytest.raises(Unfinished):
        bench_methods(recipe, home / "begun", Scope(minutes=0), methods=methods)
    found = bench_methods(recipe, home / "begun", Scope(report_only=True))
    assert not counted and found["progress"]["searches"] == 0
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}
    text = table_text(found)
    assert "so far: 0 of 14 searches" in text and "NOT MEASURED (0 of 12 searches)" in text


def test_a_report_of_another_folder_is_refused(
    home: Path, recipe: BenchRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing folder, an empty one, a run's: nothing is traced, nothing written. A bench of another network's too."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("")
    (tmp_path / "other" / "0123").mkdir(parents=True)
    (tmp_path / "other" / "0123" / "measured.db").touch()
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(flow, "open_job", None)
        for name in ("none", "empty", "run"):
            with pytest.raises(RunError, match="holds nothing of it") as caught:
                bench_methods(recipe, tmp_path / name, Scope(report_only=True))
            assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    with pytest.raises(RunError, match="holds nothing of it"):
        bench_methods(recipe, tmp_path / "other", Scope(report_only=True))
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".lock") == before


def test_only_some_methods_run(home: Path, recipe: BenchRecipe) -> None:
    """`only` runs what it names, and the figures hold what there is."""
    found = bench_methods(recipe, home / "some", Scope(only=("other",)), methods=methods)
    assert set(found["figures"]["searches"]["40%"]["4"]) == {"other"}
    with pytest.raises(UsageError, match="did you mean other"):
        bench_methods(recipe, home / "some", Scope(only=("othr",)), methods=methods)
    with pytest.raises(UsageError, match="'tpe' is none of amc, other, uniform"):
        bench_methods(recipe, home / "some", Scope(only=("tpe",)), methods=methods)
    with pytest.raises(UsageError, match="--only cannot go with it"):
        bench_methods(recipe, home / "some", Scope(only=("other",), report_only=True))


def test_only_some_winners_are_fine_tuned(recipe: BenchRecipe, tmp_path: Path) -> None:
    """`only` fine-tunes the winners of what it names: none where they are none of the recipe's."""
    small = recipe.model_copy(update={"long": 0, "rank": 0})
    bench_methods(small, tmp_path, Scope(only=("uniform",)), methods=methods)
    kept = bench_methods(small, tmp_path, Scope(only=("other",)), methods=methods)["progress"]["finals"]
    assert 0 < kept <= 2 * 2 * small.finetune_seeds  # under each cap uniform ratios and one winner
    found = bench_methods(small, tmp_path, Scope(report_only=True))
    assert set(found["figures"]["finals"]["40%"]["methods"]) == {"uniform", "other"}
    assert found["figures"]["finals"]["40%"]["spread_of_random_policies"] is None


def test_a_method_that_does_not_run_is_left_out(home: Path, recipe: BenchRecipe) -> None:
    """Its reason is told, the others go on, and it is tried again when the comparison goes on."""

    def broken(job: Job) -> Mapping[str, Method]:
        def fail(problem: Problem) -> None:
            raise MissingExtra("other", "nothing")

        return {**methods(job), "other": fail}

    found = bench_methods(recipe, home / "left", Scope(only=("other", "uniform")), methods=broken)
    assert set(found["left_out"]["other"]) == {"40%", "60%+70%params"}
    assert "other is left out at 40%, 60%+70%params: the method other needs" in table_text(found)
    assert bench_methods(recipe, home / "left", Scope(report_only=True))["left_out"] == found["left_out"]
    assert not bench_methods(recipe, home / "left", Scope(only=("other",)), methods=methods)["left_out"]


def test_what_cannot_be_compared_is_refused(home: Path, recipe: BenchRecipe, tmp_path: Path) -> None:
    """A method that is none, a cap that no policy meets, a folder in other hands: one line each."""
    strange = recipe.model_copy(update={"methods": ["amc", "rndom"]})
    with pytest.raises(UsageError, match=r"'rndom' is not; "):
        bench_methods(strange, tmp_path / "a", methods=methods)
    with pytest.raises(UsageError, match=r"small\.toml: a method"):
        bench_methods(strange, tmp_path / "a", methods=methods)
    with pytest.raises(BudgetUnreachable, match="must be reachable"):
        bench_methods(recipe.model_copy(update={"caps": [["0.01%"]]}), tmp_path / "b", methods=methods)
    (tmp_path / "c").mkdir()
    with FileLock(tmp_path / "c" / ".lock"), pytest.raises(RunError, match="one process"):
        bench_methods(recipe, tmp_path / "c", methods=methods)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "recipe (an ordinary recipe"),
        ('recipe = "quickstart"', "caps"),
        ('recipe = "quickstart"\ncaps = []', "caps"),
        ('recipe = "quickstart"\ncaps = ["40%"]\ntrails = 3', "no key 'trails'; did you mean 'trials'"),
        ('recipe = "quickstart"\ncaps = ["40"]', "broken.toml: a budget needs a unit"),
        ('recipe = "quickstart"\ncaps = ["40%", "40.0%"]', "40% stands twice"),
        ('recipe = "quickstart"\ncaps = ["40%"]\nmethods = ["amc", "tpe", "tpe"]', "tpe stands twice"),
        ('recipe = "quickstart"\ncaps = ["40%"]\nfinetune = ["amc", "amc"]', "amc stands twice"),
        ('recipe = "quickstart"\ncaps = ["40%"]\n[front]\ncaps = ["40%", "9"]', "broken.toml: a budget needs a unit"),
        ('recipe = "quickstart"\ncaps = ["40%"]\nobjective = "loss"', "likelihood"),
        ('recipe = "quickstart"\ncaps = ["40%"]\n[front]\ncaps = ["40%"]', "front.caps"),
        ('recipe = "quickstart"\ncaps = ["40%"]\n[front]\ncap = ["40%"]', "[front] has no key 'cap'"),
        ("recipe = ", "TOML"),
    ],
)
def test_a_broken_bench_recipe_is_told_in_one_line(tmp_path: Path, lines: str, said: str) -> None:
    """The message names the key or value that is wrong."""
    path = tmp_path / "broken.toml"
    path.write_text(lines)
    with pytest.raises(UsageError) as caught:
        load_bench_recipe(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_bench_recipe_that_is_none_names_those_there_are() -> None:
    """An unknown name is answered with the nearest known one."""
    with pytest.raises(UsageError, match="did you mean tiny"):
        load_bench_recipe("tny")


def test_every_bench_recipe_loads_and_says_what_it_is_for() -> None:
    """All files in recipes/bench are valid, named after their file, and their changes fit the recipe they name."""
    known = list_bench_recipes()
    assert "tiny" in known
    for name, about in known.items():
        recipe = load_bench_recipe(name)
        assert recipe.name == name and about and "\n" not in about
        path = recipes_folder() / f"{recipe.recipe}.toml"
        assert path.is_file(), f"{name} names {recipe.recipe}"
        assert recipe.compress_recipe().model.name and specs_of(recipe)


def test_changes_to_the_recipe_may_be_nested_or_dotted(home: Path) -> None:
    """Both spellings in `[set]` reach the recipe of the runs."""
    path = home / "nested.toml"
    path.write_text('recipe = "quickstart"\ncaps = ["40%"]\n[set]\n"finetune.epochs" = 2\nsearch.batch_size = 7\n')
    job = load_bench_recipe(path).compress_recipe()
    assert (job.finetune.epochs, job.search.batch_size) == (2, 7)


def test_a_killed_process_loses_no_trial(home: Path, recipe: BenchRecipe, finished: Path) -> None:
    """Killed in the middle of a search, the comparison goes on from its trials and finds the same."""
    folder = home / "killed"
    code = (
        "import os, signal, sys; sys.path.insert(0, '.')\n"
        "from amc.bench.search_methods.flow import bench_methods\n"
        "from amc.bench.search_methods.bench_recipe import load_bench_recipe\n"
        "from amc.study.measure import Measure\n"
        "from tests.bench.test_search_methods import methods\n"
        "honest, done = Measure.__call__, []\n"
        "def dying(self, policy, *a, **k):\n"
        "    if len(done) == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(1)\n"
        "    return honest(self, policy, *a, **k)\n"
        "Measure.__call__ = dying\n"
        f"bench_methods(load_bench_recipe({str(home / 'small.toml')!r}), __import__('pathlib').Path({str(folder)!r}), "
        "methods=methods)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    (path,) = folder.glob("*/measured.db")
    with Store(path.parent) as store:
        assert len(store.all(POLICY)) == 6
    bench_methods(recipe, folder, methods=methods)
    assert outcome(folder) == outcome(finished)


def test_a_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    """Records survive closing, exactly, infinities included; a later one takes an earlier one's place."""
    with Store(tmp_path) as store:
        store.put("policy", 8, 16, value={"accuracy": 1 / 3, "loss": math.inf})
        store.put("final", [8, 16], 1, value=1)
        store.put("final", [8, 16], 1, value=2)
    with Store(tmp_path) as store:
        assert store.get("policy", 8, 16) == {"accuracy": 1 / 3, "loss": math.inf} and store.get("policy", 8) is None
        assert store.get("final", [8, 16], 1) == 2 and store.get("final", [8, 16], 0) is None
        assert store.all("final") == [2] and len(store.all("policy")) == 1


def test_a_folder_of_an_older_version_is_named_as_such(tmp_path: Path) -> None:
    """One line, and nothing is written."""
    (tmp_path / "labels.db").touch()
    with pytest.raises(RunError, match=r"older version.*--out"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.db"]


def test_tables_have_a_row_a_method_and_a_column_a_cap(finished: Path) -> None:
    """The same cells in Markdown and in plain text, with intervals and places, and every goal below."""
    record = json.loads((finished / "results.json").read_text())
    for text in (table_text(record), table_markdown(record)):
        assert all(part in text for part in ("40%, 4", "60%+70%params, 6", "other", "±", "(1)", "CANNOT TELL: "))
        assert "after an equal fine-tune" in text and "Kendall" in text
    (row,) = [line for line in table_markdown(record).splitlines() if line.startswith("| other | 0")]
    assert row.count("|") == 1 + 7
    assert (finished / "table.md").read_text() == table_markdown(record)


def test_one_study_of_ours_serves_several_caps(home: Path) -> None:
    """Its best under each cap stands beside studies made for that cap alone; no trial beyond what was allowed."""
    path = home / "front.toml"
    text = RECIPE.format(ordinary=home / "ordinary.toml").partition("long = 6")[0]
    path.write_text(
        f'{text}long = 0\n[front]\ncaps = ["40%", "70%"]\ntrials = 20\nseeds = 1\nmethods = ["other"]\n'
        "[set]\nsearch.batch_size = 50\n"
    )
    found = bench_methods(load_bench_recipe(path), home / "front", methods=methods)
    rows = found["figures"]["front"]
    assert set(rows) == {"40%", "70%"} and rows["70%"]["others"]["other"]["ours_minus"]["n"] == 1
    assert 0 < rows["40%"]["ours"]["mean"] <= rows["70%"]["ours"]["mean"]
    (study,) = (home / "front").rglob("searches/amc/front-20-0.json")
    study_record = json.loads(study.read_text())
    assert len(study_record["values"]) + study_record["price"] == 20 > study_record["price"] > 0
    assert found["goals"][-2]["verdict"] == "cannot tell" and "One study" in (home / "front" / "plots.html").read_text()


def test_the_command_line_takes_a_bench_recipe_for_a_command(
    home: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`amc bench FILE` reports and exits 0; without time it exits 130 with one line; unknown names exit 2."""
    from amc.cli import main

    monkeypatch.setattr(flow, "product_methods", methods)

    def amc(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amc", "bench", *words])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    recipe = str(home / "small.toml")
    code, out, _ = amc(recipe, "--out", str(finished), "--quiet")
    assert code == 0 and "Best objective value under each cap" in out and "plots.html" in out
    code, out, _ = amc(recipe, "--out", str(finished), "--quiet", "--json", "--report")
    assert code == 0 and json.loads(out)["format"] == "amc-bench-search/1"
    code, out, err = amc(recipe, "--out", str(home / "late"), "--quiet", "--minutes", "0")
    assert code == 130 and err.count("\n") == 1 and "0 of 14 searches" in err and not out
    code, _, err = amc("tinny")
    assert code == 2 and "did you mean tiny" in err
    code, out, _ = amc("--help")
    assert code == 0 and "RECIPE" in out and "recovery" in out

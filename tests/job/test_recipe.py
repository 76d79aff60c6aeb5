from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.cost.budget import Budget, parse_budget
from amc.job.recipe import Recipe, list_recipes, load_recipe, parse_recipe, recipes_folder, resolved_toml
from amc.study.settings import SearchSettings
from amc.system.errors import UsageError
from amc.system.factory import import_factory
from amc.train.settings import FinetuneSchedule, Schedule
from amc.zoo.data.sources import LOADERS
from amc.zoo.networks.source import model_source
from amc.zoo.settings import ModelSettings

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
OPTIONS = st.dictionaries(TEXT, st.integers(-100, 100) | st.booleans() | TEXT | st.lists(st.integers(0, 9)), max_size=3)
RECIPES = st.builds(
    Recipe,
    name=TEXT,
    seed=st.integers(0, 2**32 - 1),
    budget=st.sampled_from([[], ["50%"], ["1.2GFLOPs", "9MB"], ["60%params,1.5MBact"]]),
    out=st.none() | TEXT,
    threads=st.none() | st.integers(1, 64),
    model=st.builds(ModelSettings, name=TEXT, options=OPTIONS, ignore=st.lists(TEXT, max_size=3)),
    search=st.builds(SearchSettings, trials=st.integers(1, 999), study=st.none() | TEXT),
    finetune=st.builds(FinetuneSchedule, epochs=st.floats(0, 100), lr=st.floats(1e-9, 1), uniform=st.booleans()),
)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def complaint(path: str | Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(RECIPES)
def test_resolved_recipe_reads_back_equal(recipe: Recipe) -> None:
    """What is written into the run is the recipe, whole."""
    assert parse_recipe(resolved_toml(recipe)) == recipe


def test_built_in_recipes_are_valid_and_described() -> None:
    """Every built-in recipe loads, bears its file's name, has a budget and a line about it."""
    names = list_recipes()
    assert {"quickstart", "fashion-mnist"} <= set(names)
    for name, about in names.items():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert about
        assert recipe.budgets
        assert parse_recipe(resolved_toml(recipe)) == recipe


def test_quickstart_is_the_job_that_the_readme_promises() -> None:
    """ResNet-20 on the embedded images at 8 % of its MACs, with at least 48 trials and uniform ratios to compare."""
    recipe = load_recipe("quickstart")
    assert (recipe.model.name, recipe.data.name) == ("resnet20", "fashion-mnist-10k")
    assert recipe.budgets == (Budget("macs", 0.08, relative=True),)
    assert recipe.search.trials >= 48 and recipe.finetune.uniform


def test_every_field_is_described() -> None:
    """No key is left for the user to guess."""
    for name, field in Recipe.model_fields.items():
        assert field.description, name
        for key, inner in getattr(field.annotation, "model_fields", {}).items():
            assert inner.description, f"{name}.{key}"


def test_training_and_fine_tuning_share_the_schedule_with_their_own_defaults() -> None:
    """One class names the keys of both tables."""
    assert set(Schedule.model_fields) <= set(FinetuneSchedule.model_fields)
    assert load_recipe().train.epochs > load_recipe().finetune.epochs


def test_a_file_changes_only_what_it_says(tmp_path: Path) -> None:
    """Keys that a recipe leaves out keep their defaults, and its name is the file's."""
    recipe = load_recipe(write(tmp_path, 'budget = "9MB"\n[finetune]\nepochs = 2'))
    assert recipe == Recipe(name="my", budget=["9MB"], finetune=FinetuneSchedule(epochs=2))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Editors that put a mark before UTF-8 text are forgiven."""
    assert load_recipe(write(tmp_path, b"\xef\xbb\xbfseed = 3")).seed == 3


def test_overrides_win_and_none_means_not_given() -> None:
    """Flags stand above the recipe; typed text becomes the value that its key asks for."""
    recipe = load_recipe(
        "quickstart",
        {
            "finetune.epochs": "0.5",
            "seed": 7,
            "budget": ["9MB"],
            "model.weights": "none",
            "search.acquisition": "seernet",
            "finetune.uniform": "false",
            "model.options": {"width": 8},
            "threads": None,
            "model.ignore": ("fc",),
            "data.name": "12",
        },
    )
    assert (recipe.finetune.epochs, recipe.finetune.uniform, recipe.seed, recipe.threads) == (0.5, False, 7, None)
    assert (recipe.model.weights, recipe.model.options, recipe.model.ignore) == ("none", {"width": 8}, ["fc"])
    assert (recipe.search.acquisition, recipe.budget, recipe.data.name) == ("seernet", (parse_budget("9MB"),), "12")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[finetune]\nepoch = 3", ["[finetune] has no key 'epoch'", "did you mean 'epochs'?", "got 3"]),
        ("seeed = 3", ["the top level has no key 'seeed'", "did you mean 'seed'?"]),
        ("[serch]\ntrials = 3", ["the top level has no key 'serch'", "did you mean 'search'?"]),
        ("trials = 3", ["it belongs to [search]"]),
        ("[search]\nzzz = 3", ["its keys are trials"]),
        ("[finetune]\nepochs = 'many'", ["finetune.epochs", "valid number", "'many'"]),
        ("[search]\ntrials = true", ["search.trials", "valid integer", "True"]),
        ("[search]\ntrials = 0", ["search.trials", "greater than or equal to 1", "0"]),
        ("[finetune]\nlr = nan", ["finetune.lr", "finite", "nan"]),
        ("[surgery]\nimportance = 'size'", ["surgery.importance", "magnitude, taylor, lamp", "'size'"]),
        ("model = 'resnet20'", ["model", "[model]", "'resnet20'"]),
        ("budget = ['12Xparams']", ["12Xparams"]),
        ("budget = [12]", ["budget", "12"]),
        ("[search]\ntrials = 0\ncandidates = 0", ["and 1 more"]),
        ("seed = ", ["my.toml must be TOML"]),
        (b"name = '\xff'", ["must be UTF-8"]),
        ("[model.options]\nwhen = 2020-01-01", ["model.options"]),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_with_its_mend(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    """The line names the key, the rule and the value got."""
    message = complaint(write(tmp_path, text))
    for part in parts:
        assert part in message, message


def test_a_mistake_in_an_override_is_one_line_too() -> None:
    """Unknown and ill-typed flags are told like unknown and ill-typed keys."""
    assert "did you mean 'epochs'?" in complaint("quickstart", {"finetune.epoch": 3})
    assert "finetune.epochs" in complaint("quickstart", {"finetune.epochs": "many"})
    assert "no key 'nothing'" in complaint("quickstart", {"nothing.at.all": 3})
    assert "'seed' to be a table" in complaint("quickstart", {"seed.at": 3})


def test_missing_recipes_and_folders(tmp_path: Path) -> None:
    """An unknown name is answered with the nearest, a folder with the rule."""
    assert "did you mean quickstart?" in complaint("quickstar")
    assert "no 'my.toml'" in complaint("my.toml")
    assert "is a folder" in complaint(tmp_path)


def test_a_job_without_budget_says_so() -> None:
    """The budget may be missing from a recipe, not from a compression."""
    with pytest.raises(UsageError, match="at least one budget"):
        _ = load_recipe().budgets


def test_a_recipe_does_not_change() -> None:
    """A recipe that was read is a value."""
    with pytest.raises(ValueError, match="frozen"):
        load_recipe().seed = 3


def test_tables_can_be_set_as_toml() -> None:
    """`--set model.options={...}` is read as a TOML table; so is a single option by its own dotted key."""
    recipe = load_recipe(None, {"model.options": "{min_size = 64, kind = 'a'}"})
    assert recipe.model.options == {"min_size": 64, "kind": "a"}
    assert load_recipe(None, {"model.options.min_size": "64"}).model.options == {"min_size": 64}


def test_a_task_names_functions_or_nothing() -> None:
    """[task] is empty for classification and keeps the names it is given."""
    assert load_recipe(None).task.model_dump() == {"batch": None, "metric": None, "loss": None}
    assert load_recipe(None, {"task.metric": "a.b:c"}).task.metric == "a.b:c"
    assert load_recipe("custom-metric").task.metric == "amc.zoo.examples.kinds:kind_score"


PUBLISHED = ("imagenet-resnet50", "imagenet-mobilenetv2", "cifar10-resnet56", "cifar10-vgg")


@pytest.mark.parametrize("name", list(list_recipes()))
def test_every_recipe_names_data_and_weights_that_can_be_had(name: str) -> None:
    """Data are shipped, drawn, downloaded, or the recipe's comments say how to get them; so it is with the weights."""
    recipe, text = load_recipe(name), (recipes_folder() / f"{name}.toml").read_text()
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    kind, _, folder = recipe.data.name.partition(":")
    if kind in LOADERS and folder:
        assert folder in comments, "a folder that nothing fills"
    else:
        assert kind in ("fashion-mnist-10k", "fashion-mnist") or import_factory(recipe.data.name, UsageError)
    if recipe.model.weights not in ("default", "none"):
        made = Path(recipe.model.weights).parent
        assert f"train --recipe {name} --out {made}" in comments
        assert Path(recipe.model.weights).name == "model.safetensors"
    for task in (recipe.task.metric, recipe.task.loss, recipe.task.batch):
        assert task is None or import_factory(task, UsageError)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_for_published_figures_say_that_they_were_not_run(name: str) -> None:
    """Their network can be built, and sources stand beside the figures."""
    recipe, text = load_recipe(name), (recipes_folder() / f"{name}.toml").read_text()
    assert "NOT RUN HERE" in text and "not run here" in recipe.about
    assert "Published" in text and ("README" in text or "readme.md" in text)
    assert model_source(recipe.model.name, options=recipe.model.options).skeleton() is not None

import tomllib
from importlib.metadata import PackageNotFoundError, entry_points, metadata
from pathlib import Path

import pytest

from amc.job.recipe import list_recipes, load_recipe, recipes_folder

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_disk_is_in_the_wheel() -> None:
    """The list in pyproject.toml is the folders that hold an `__init__.py`, and the recipes."""
    homes = {"amc": ROOT, "amc_search": ROOT / "search", "amc_predictor": ROOT / "predictor"}
    found = {"amc.recipes"}
    for name, home in homes.items():
        found |= {".".join(path.parent.relative_to(home).parts) for path in (home / name).rglob("__init__.py")}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found) and listed == sorted(listed)


def test_data_files_are_where_the_wheel_looks_for_them() -> None:
    """Every pattern of package-data meets a file, so that a renamed folder is noticed."""
    where = {"*": ROOT / "amc", "amc": ROOT / "amc", "amc.recipes": ROOT / "recipes"}
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list(where[package].glob(pattern)), f"{package}: {pattern}"


def test_the_installed_metadata_is_that_of_the_project() -> None:
    """Name, version, licence and the `amc` command, where the package is installed."""
    try:
        found = metadata("amc-compress")
    except PackageNotFoundError:
        pytest.skip("amc-compress is not installed here; `pip install -e .` first")
    assert found["Version"] == PROJECT["project"]["version"]
    assert found["License-Expression"] == "Apache-2.0"
    (command,) = entry_points(group="console_scripts", name="amc")
    assert command.value == "amc.cli:main"


def test_the_project_says_what_a_registry_asks_for() -> None:
    """Version, readme, licence and supported Pythons stand in pyproject.toml."""
    project = PROJECT["project"]
    assert project["name"] == "amc-compress" and project["version"].count(".") == 2
    assert project["license"] == "Apache-2.0" and project["requires-python"] == ">=3.11"
    for pattern in project["license-files"]:
        assert (ROOT / pattern).is_file()


def test_every_recipe_loads_and_says_what_it_is_for() -> None:
    """All files in recipes/ are valid, named after their file, with a budget and one line about themselves."""
    names = {path.stem for path in (ROOT / "recipes").glob("*.toml")}
    assert {"quickstart", "fashion-mnist"} <= names == set(list_recipes())
    assert recipes_folder() == ROOT / "recipes"
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.budgets and recipe.about and "\n" not in recipe.about

"""Recipes of `amc bench cascade`: which study, on which networks and data, with how many seeds."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from amc import Recipe, Settings, load_recipe, parse_budgets, recipes_folder
from amc.bench.recipe_file import dotted, read_recipe

StudyName = Literal["exits", "exits-joint", "savers", "students", "risk", "speed", "plans"]


class ContextSection(Settings):
    """A network and its data: an ordinary recipe, with keys of it changed."""

    recipe: str = Field(min_length=1, description="an ordinary recipe; its run is the family's")
    settings: dict[str, JsonValue] = Field(default={}, alias="set", description="keys of that recipe, changed")

    @cached_property
    def wanted(self) -> Recipe:
        """The ordinary recipe, with the keys changed."""
        return load_recipe(self.recipe, dotted(self.settings))

    @property
    def name(self) -> str:
        return Path(self.recipe).stem


class CascadeRecipe(Settings):
    """One study of dynamic inference."""

    name: str = Field(default="custom", min_length=1, description="the study's name")
    about: str = Field(default="", description="one line about it")
    study: StudyName = Field(description="what is shown")
    seeds: int = Field(default=3, ge=1, description="divisions of the held-out images, and trainings")
    budgets: list[str] = Field(default=["15%", "25%", "40%", "55%", "70%"], min_length=1, description="mean costs")
    contexts: list[ContextSection] = Field(min_length=1, alias="on", description="networks and their data")


def list_cascade_recipes() -> dict[str, str]:
    """Name -> what it is about, of the built-in ones."""
    return {path.stem: load_cascade_recipe(path).about for path in sorted(_folder().glob("*.toml"))}


def load_cascade_recipe(name_or_path: str | Path) -> CascadeRecipe:
    """Read a built-in cascade recipe by name or a TOML file by path.

    Raises:
        UsageError: no such recipe, an unreadable file, broken TOML, an unknown key, a value against its rule.
    """
    recipe = read_recipe(
        CascadeRecipe, str(name_or_path), _folder(), command="amc bench cascade needs",
        origin=f"cascade recipe {name_or_path}",
    )  # fmt: skip
    for context in recipe.contexts:
        _ = context.wanted  # a mistake in it is reported before anything is run
    for budget in recipe.budgets:
        parse_budgets(budget)
    return recipe


def _folder() -> Path:
    return recipes_folder() / "cascade"

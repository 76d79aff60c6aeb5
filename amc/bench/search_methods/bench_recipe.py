"""Bench recipes: which methods search which network, under which caps, with how many trials and seeds.

A TOML file that names an ordinary recipe for network, data, recovery and fine-tune, and changes keys of it under
`[set]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, PrivateAttr, field_validator
from pydantic_core import PydanticCustomError

from amc import Budget, Recipe, Settings, load_recipe, parse_budgets, recipes_folder
from amc.bench.recipe_file import dotted, read_recipe

OURS = "amc"  # the method that the others are compared with; its ablations are called amc-WITHOUT
UNIFORM = "uniform"
Objective = Literal["likelihood", "accuracy"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Budgets = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]  # of one cap: all hold


def _each_once(names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise PydanticCustomError("twice", "each may stand once, but {name} stands twice", {"name": name})
    return names


def _well_formed(caps: list[list[str]]) -> list[list[str]]:
    _each_once([cap_name(cap) for cap in caps])  # a UsageError passes through pydantic as it is
    return caps


Methods = Annotated[list[str], Field(description="names of methods"), AfterValidator(_each_once)]
Caps = Annotated[list[Budgets], AfterValidator(_well_formed)]


class FrontSection(Settings):
    """One study of ours for several caps, against studies made for each cap alone."""

    caps: Caps = Field(min_length=2, description="that one study of ours serves")
    trials: int = Field(default=128, ge=16, description="trials of our one study, and of each study of the others")
    seeds: int = Field(default=3, ge=1, description="of either")
    methods: Methods = Field(default=["tpe", "evolution"], description="that make a study for each cap alone")


class BenchRecipe(Settings):
    """A comparison of methods of search."""

    name: str = Field(default="custom", min_length=1, description="the comparison's name")
    about: str = Field(default="", description="one line about it")
    recipe: str = Field(min_length=1, description="an ordinary recipe: network, data, recovery, fine-tune")
    settings: dict[str, JsonValue] = Field(default={}, alias="set", description="keys of that recipe, changed")
    caps: Caps = Field(min_length=1, description="each a budget, or a list of budgets that all hold")
    objective: Objective = Field(
        default="likelihood", description="likelihood (exp of minus the calibrated loss) or accuracy"
    )
    trials: int = Field(default=64, ge=1, description="trials of a search")
    seeds: int = Field(default=5, ge=1, description="searches of each method under each cap")
    methods: Methods = Field(default=[OURS, "random"], min_length=1)
    long: int = Field(default=256, ge=0, description="trials of a long search; 0: no long searches")
    long_seeds: int = Field(default=3, ge=1, description="long searches of each method under each cap")
    long_methods: Methods = Field(default=[], description="default: all of `methods`")
    finetune: bool | list[str] = Field(default=False, description="whether winners are fine-tuned, or whose")
    finetune_judge: Objective = Field(
        default="accuracy", description="of the test split: what the fine-tuned are compared by"
    )
    finetune_seeds: int = Field(default=2, ge=1, description="orders of the data in which each is fine-tuned")
    finetune_searches: int = Field(default=0, ge=0, description="winners of the first so many searches; 0: of all")
    finetune_random: int = Field(default=0, ge=0, description="random policies fine-tuned beside them, each cap")
    rank: int = Field(default=0, ge=0, description="random policies near each cap to test our predictor's order on")
    front: FrontSection | None = Field(default=None, description="one study for several caps")

    _file: str = PrivateAttr("")

    @field_validator("finetune")
    @classmethod
    def _finetuned_once(cls, value: bool | list[str]) -> bool | list[str]:
        return value if isinstance(value, bool) else _each_once(value)

    @property
    def origin(self) -> str:
        """What errors call it."""
        return f"bench recipe {self._file or self.name}"

    @property
    def all_caps(self) -> dict[str, tuple[Budget, ...]]:
        """Every cap by its name, those of the front last."""
        wanted = [*self.caps, *(self.front.caps if self.front else [])]
        return {cap_name(cap): parse_budgets(cap) for cap in wanted}

    @cached_property
    def cap_names(self) -> list[str]:
        return list(dict.fromkeys(cap_name(cap) for cap in self.caps))

    @property
    def winners_of(self) -> list[str]:
        """The methods whose winners are fine-tuned."""
        if isinstance(self.finetune, bool):
            return self.methods if self.finetune else []
        return self.finetune

    @property
    def named_methods(self) -> list[str]:
        """All methods that the recipe names anywhere, each once."""
        front = self.front.methods if self.front else []
        return list(dict.fromkeys([*self.methods, *self.long_methods, *self.winners_of, *front]))

    def compress_recipe(self, overrides: Mapping[str, object] | None = None) -> Recipe:
        """The ordinary recipe with the changes. Raises `UsageError`."""
        return load_recipe(self.recipe, {**dotted(self.settings), **(overrides or {})})


def cap_name(budgets: list[str]) -> str:
    """What a cap is called in files and tables."""
    return "+".join(str(budget) for budget in parse_budgets(budgets))


def load_bench_recipe(name_or_path: str | Path) -> BenchRecipe:
    """Read a built-in bench recipe by name or a TOML file by path.

    Raises:
        UsageError: no such recipe, an unreadable file, broken TOML, an unknown key, a value against its rule.
    """
    name = str(name_or_path)
    recipe = read_recipe(
        BenchRecipe, name, _folder(), command="amc bench needs one of its commands,", origin=f"bench recipe {name}"
    )
    recipe._file = name
    return recipe


def list_bench_recipes() -> dict[str, str]:
    """The built-in bench recipes: name and one line about each, in alphabetical order."""
    return {path.stem: load_bench_recipe(path).about for path in sorted(_folder().glob("*.toml"))}


def _folder() -> Path:
    return recipes_folder() / "bench"

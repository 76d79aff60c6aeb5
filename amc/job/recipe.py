"""Recipes: what a job is asked to do, validated once, at the door.

A recipe is a TOML file of a few tables; every key has a default, so a recipe holds only what it changes. Flags of the
command line override it by dotted keys (`finetune.epochs`). Paths in a recipe are relative to the working folder.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tomli_w
from pydantic import BaseModel, Field, PlainSerializer, PlainValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from amc.cost.budget import Budget, parse_budgets
from amc.study.settings import SearchSettings
from amc.surgery.settings import SurgerySettings
from amc.system.errors import UsageError
from amc.system.settings import Settings
from amc.train.settings import FinetuneSchedule, RecoverySettings, Schedule
from amc.zoo.settings import DataSettings, ModelSettings, TaskSettings
from amc.zoo.trust import allow, check_trusted, is_own_code, names_in

NAMES = ("model.name", "data.name", "task.batch", "task.metric", "task.loss")  # of code, perhaps the user's own


def _read_budgets(value: object) -> tuple[Budget, ...]:
    """A text, or several, as budgets; a UsageError passes through pydantic as it is."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, (list, tuple)) or not all(isinstance(each, (str, Budget)) for each in several):
        raise PydanticCustomError("budget", "input should be a text or a list of texts, such as 1.2GFLOPs")
    return parse_budgets(several) if several else ()


class Recipe(Settings):
    """All that a job is asked to do."""

    name: str = Field(default="custom", min_length=1, description="the recipe's name")
    about: str = Field(default="", description="one line for `amc recipes`")
    seed: int = Field(default=0, ge=0, lt=2**32, description="what all randomness of the job starts from")
    budget: Annotated[
        tuple[Budget, ...], PlainValidator(_read_budgets), PlainSerializer(lambda budgets: [str(b) for b in budgets])
    ] = Field(default=(), description="caps that must all hold: 1.2GFLOPs, 600M, 40%, 2.5Mparams, 9MB")
    out: str | None = Field(default=None, min_length=1, description="the run folder; default: runs/NAME")
    threads: int | None = Field(default=None, ge=1, le=4096, description="threads of torch; default: as torch decides")
    device: str | None = Field(
        default=None, min_length=1, description="cpu, cuda, cuda:1, mps; default: the GPU where there is one"
    )
    model: ModelSettings = Field(default=ModelSettings(), description="the dense network")
    data: DataSettings = Field(default=DataSettings(), description="the data")
    task: TaskSettings = Field(default=TaskSettings(), description="what the network is called with, and what is good")
    surgery: SurgerySettings = Field(default=SurgerySettings(), description="which channels go first")
    recovery: RecoverySettings = Field(default=RecoverySettings(), description="what is done before measuring")
    search: SearchSettings = Field(default=SearchSettings(), description="how policies are measured and chosen")
    finetune: FinetuneSchedule = Field(default=FinetuneSchedule(), description="how the cut network is trained on")
    train: Schedule = Field(default=Schedule(), description="how `amc train` trains the dense network")

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The caps. Raises `UsageError` when the recipe has none."""
        return self.budget or parse_budgets(())


def load_recipe(name_or_path: str | Path | None = None, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Read a built-in recipe by name, a TOML file by path, or, for None, the defaults alone; then apply overrides.

    Args:
        name_or_path: a built-in name wins over a file of that name (write `./quickstart` for the file).
        overrides: values by dotted key (`finetune.epochs`). None means "not given" and is skipped. A text given for a
            key that holds no text is read as a TOML value, so that flags may pass on what the user typed.

    Raises:
        UsageError: no such recipe, an unreadable file, broken TOML, an unknown key, a value against its rule.
    """
    origin, table = ("the defaults", {}) if name_or_path is None else _read(str(name_or_path))
    if name_or_path is not None and "name" not in table:
        table["name"] = Path(name_or_path).stem
    for key, value in (overrides or {}).items():
        if value is not None:
            _set(table, key, value)
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        raise UsageError(_explain(origin, error)) from None
    allow(names_in(recipe.model, recipe.data, recipe.task))  # the user named the recipe: what it names is theirs
    return recipe


def job_name(model: str) -> str:
    """What a job is called that names only its network: the last part of the network's name."""
    return model.rstrip(":").rpartition(":")[2] or "custom"


def amended(recipe: Recipe, overrides: Mapping[str, object]) -> Recipe:
    """The recipe with other values by dotted key, the user's; raises `UsageError` as `load_recipe` does."""
    allow([str(value) for key, value in overrides.items() if key in NAMES and value is not None])
    table = recipe.model_dump(exclude_none=True)
    for key, value in overrides.items():
        if value is not None:
            _set(table, key, value)
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise UsageError(_explain(f"recipe {recipe.name}", error)) from None


def check_data_named(model: object) -> None:
    """Raises `UsageError` for a network of the user's own without data: a default set would not be theirs."""
    if model is not None and not (isinstance(model, str) and not is_own_code(model)):
        name = model if isinstance(model, str) else type(model).__name__
        raise UsageError(f"a network of your own needs your data, but {name} was given none; give --data, or train=")


def check_trust(recipe: Recipe) -> None:
    """Raises `UsageError` where a recipe, read from a file, names code that the user did not: see `amc.zoo.trust`."""
    names = names_in(recipe.model, recipe.data, recipe.task)
    check_trusted(names, (), f"recipe {recipe.name!r}, as a file holds it,", UsageError)


def list_recipes() -> dict[str, str]:
    """The built-in recipes: name and one line about each, in alphabetical order."""
    return {path.stem: load_recipe(path).about for path in sorted(recipes_folder().glob("*.toml"))}


def recipes_folder() -> Path:
    """Where the built-in recipes are: inside the installed package, or at the top of a checkout."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def resolved_toml(recipe: Recipe) -> str:
    """The whole recipe as TOML, defaults included; reading it gives an equal recipe."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))  # TOML has no null: a key that is not there is None


def shareable(recipe: Recipe) -> Recipe:
    """The recipe as others may read it: without the storage, whose URL may hold a password, and the folder."""
    return recipe.model_copy(update={"out": None, "search": recipe.search.model_copy(update={"study": None})})


def parse_recipe(text: str, origin: str = "the recipe") -> Recipe:
    """Read a recipe from TOML text. Raises `UsageError` as `load_recipe` does."""
    try:
        return Recipe.model_validate(_parse_toml(text, origin))
    except ValidationError as error:
        raise UsageError(_explain(origin, error)) from None


def _read(name: str) -> tuple[str, dict[str, Any]]:
    """Where a recipe comes from, in words, and its table."""
    built_in = recipes_folder() / f"{name}.toml"
    is_plain = name == Path(name).name and not name.endswith(".toml")
    if is_plain and built_in.is_file():
        return f"recipe {name}", _parse_toml(built_in.read_text(encoding="utf-8"), f"recipe {name}")
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"a recipe must be a TOML file, but {name} is a folder; give the file inside it")
    if not path.exists():
        known = sorted(p.stem for p in recipes_folder().glob("*.toml"))
        near = difflib.get_close_matches(Path(name).stem, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"a recipe must be a TOML file or one of {', '.join(known)}, but there is no {name!r}; "
            f"{hint}`amc recipes` lists them"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"a recipe must be UTF-8 text, but {name} is not, at byte {error.start}; save it as UTF-8"
        ) from None
    except OSError as error:
        raise UsageError(f"recipe {name} must be readable, but: {error.strerror or error}") from None
    return f"recipe {name}", _parse_toml(text, f"recipe {name}")


def _parse_toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{origin} must be TOML, but: {_line(str(error))}") from None


def _set(table: dict[str, Any], key: str, value: object) -> None:
    """Put one override where its dotted key says."""
    *sections, last = key.split(".")
    holder: type[BaseModel] | None = Recipe
    for section in sections:
        inner = table.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{key} needs {section!r} to be a table, but it is {_line(repr(inner))}")
        table, holder = inner, _section_class(holder, section)
    field = holder.model_fields.get(last) if holder else None
    kind = field.annotation if field else None
    holds_text = get_origin(kind) not in (dict, list, tuple) and str in (kind, *get_args(kind))
    if isinstance(value, str) and not holds_text:
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            pass  # a plain word, e.g. one of a few choices
    table[last] = list(value) if isinstance(value, tuple) else value


def _section_class(holder: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    field = holder.model_fields.get(name) if holder else None
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _explain(origin: str, error: ValidationError) -> str:
    """One line: the first mistake, unknown keys before wrong values, and how many more there are."""
    mistakes = sorted(error.errors(include_url=False), key=lambda m: m["type"] != "extra_forbidden")
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{origin}: {_explain_one(mistakes[0])}{more}"


def _explain_one(mistake: ErrorDetails) -> str:
    path = [str(part) for part in mistake["loc"]]
    *sections, last = path
    got = _line(repr(mistake["input"]))
    if mistake["type"] == "extra_forbidden":
        holder: type[BaseModel] | None = Recipe
        for section in sections:
            holder = _section_class(holder, section)
        keys = list(holder.model_fields) if holder else []
        near = difflib.get_close_matches(last, keys, 1)
        where = f"[{'.'.join(sections)}]" if sections else "the top level"
        guess = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(keys)}"
        hint = _elsewhere(last) or guess
        return f"{where} has no key {last!r} (got {got}); {hint}"
    rule = mistake["msg"][0].lower() + mistake["msg"][1:]
    if mistake["type"] == "model_type":
        rule = f"must be a table: write [{last}] and its keys below it"
    field = _section_class(Recipe, sections[0]) if sections else Recipe
    known = field.model_fields.get(path[1] if sections else last) if field else None
    meaning = f" ({known.description})" if known and known.description and mistake["type"] != "model_type" else ""
    return f"{'.'.join(path)}{meaning}: {_line(rule)}, but got {got}"


def _elsewhere(key: str) -> str:
    """A hint for a key that stands in the wrong table."""
    homes = [
        name
        for name in Recipe.model_fields
        if (kind := _section_class(Recipe, name)) is not None and key in kind.model_fields
    ]
    return f"it belongs to {' or '.join(f'[{name}]' for name in homes)}" if homes else ""


def _line(text: str) -> str:
    """At most 80 characters on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:77] + "..."

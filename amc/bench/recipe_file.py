"""The TOML file of a benchmark: found by name or path, read, its first mistake reported in one line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from amc import UsageError

T = TypeVar("T", bound=BaseModel)


def read_recipe(kind: type[T], name: str, folder: Path, *, command: str, origin: str) -> T:
    """The recipe of a benchmark: built in, by its name in `folder`, or a TOML file by path.

    Args:
        kind: what the file holds; `name` is set to the file's own where it has none.
        name: of the recipe, or its path.
        folder: of the built-in ones.
        command: the first words of the error for a recipe that is not there.
        origin: the first words of any other error.

    Raises:
        UsageError: no such recipe, an unreadable file, broken TOML, an unknown key, a value against its rule.
    """
    path = _file_of(name, folder, command)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"{origin} must be readable UTF-8 and TOML, but: {reason}") from None
    try:
        return kind.model_validate({"name": path.stem, **table})
    except ValidationError as error:
        raise UsageError(f"{origin}: {_explained(error, kind)}") from None
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested tables as dotted keys, so that `search.batch_size = 50` and `"search.batch_size" = 50` mean the same."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _file_of(name: str, folder: Path, command: str) -> Path:
    built_in, path = folder / f"{name}.toml", Path(name)
    if name == path.name and built_in.is_file():
        return built_in
    if path.is_file():
        return path
    known = sorted(p.stem for p in folder.glob("*.toml"))
    near = difflib.get_close_matches(path.stem, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"{command} a TOML file, or one of {', '.join(known)}, but there is no {name!r}; "
        f"{hint}`amc bench --help` lists the commands"
    )


def _explained(error: ValidationError, kind: type[BaseModel]) -> str:
    """One line: the first mistake, unknown keys before wrong values, and how many more there are."""
    mistakes = sorted(error.errors(include_url=False), key=lambda m: m["type"] != "extra_forbidden")
    mistake, more = mistakes[0], f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    keys = [part for part in mistake["loc"] if isinstance(part, str)]  # without places in a list
    inner = _table_class(kind, keys[0]) if len(keys) > 1 else None
    fields = {field.alias or name: field for name, field in (inner or kind).model_fields.items()}
    if mistake["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], fields, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(fields)}"
        where = f"[{keys[0]}]" if inner else "the top level"
        return f"{where} has no key {keys[-1]!r}; {hint}{more}"
    field = fields.get(keys[1] if inner else keys[0])
    meaning = f" ({field.description})" if field and field.description else ""
    got = " ".join(repr(mistake["input"]).split())[:80]
    rule = mistake["msg"][0].lower() + mistake["msg"][1:]
    return f"{'.'.join(map(str, mistake['loc']))}{meaning}: {rule}, but got {got}{more}"


def _table_class(kind: type[BaseModel], key: str) -> type[BaseModel] | None:
    """What a table of the recipe, or each of a list of tables, holds; None where the key is that of no table."""
    field = next((field for name, field in kind.model_fields.items() if key in (name, field.alias)), None)
    found = [field.annotation, *get_args(field.annotation)] if field else []
    return next((of for of in found if isinstance(of, type) and issubclass(of, BaseModel)), None)

"""The command that shows built-in recipes: recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from amc.cli.options import JsonOption, print_result


def recipe_files() -> dict[str, str]:
    """The built-in recipes by name, the folders of `amc bench` and `amc bench cascade` before theirs -> their text."""
    from amc.job.recipe import recipes_folder

    home = recipes_folder()
    return {
        path.relative_to(home).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(home.rglob("*.toml"))
    }


def recipe_names(incomplete: str) -> list[str]:
    """What a shell completes the name of a recipe to."""
    return [name for name in recipe_files() if name.startswith(incomplete)]


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them, to be printed; by default all are listed.", autocompletion=recipe_names),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the built-in recipes of `amc compress`, `amc bench` and `amc bench cascade`, or print one."""
    if name is not None:
        _print(name, json_)
        return
    from amc.bench.cascade.study_recipe import list_cascade_recipes
    from amc.bench.search_methods.bench_recipe import list_bench_recipes
    from amc.job.recipe import list_recipes

    found = {
        "amc compress": list_recipes(),
        "amc bench": list_bench_recipes(),
        "amc bench cascade": list_cascade_recipes(),
    }
    width = 2 + max(len(name) for names in found.values() for name in names)
    lines = []
    for command, names in found.items():
        lines += ["", f"for `{command}`:", *(f"{name:<{width}}{about}" for name, about in names.items())]
    print_result(found if json_ else "\n".join(lines[1:]))


def _print(name: str, json_: bool) -> None:
    """A recipe's text as it stands, or its keys as JSON. Raises `UsageError` for a name that is none."""
    import tomllib

    from amc.system.errors import UsageError

    files = recipe_files()
    found = next((files[key] for key in (name, f"bench/{name}", f"cascade/{name}") if key in files), None)
    if found is None:
        raise UsageError(f"a built-in recipe must be one of {', '.join(files)}, but is {name!r}")
    print_result(tomllib.loads(found) if json_ else found.rstrip("\n"))

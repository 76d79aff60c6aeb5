"""Writes those parts of the documents that the code knows best: `python docs/generate.py`, `--check` only compares.

In a page, what stands between `<!-- generated: NAME -->` and `<!-- end -->` is what the function of that name gives.
The rooms are drawn by `docs/rooms.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import rooms  # docs/rooms.py

DOCS = Path(__file__).parent
MARK = re.compile(r"(?<=<!-- generated: )([a-z-]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


# Recipes


def built_in() -> str:
    """Every recipe of `amc compress`, in one line."""
    from amc.job.recipe import list_recipes

    return table(("name", "what it does"), [(f"`{name}`", about) for name, about in list_recipes().items()])


def keys() -> str:
    """Every key of a recipe: type, default and meaning, a table for each section."""
    from amc.job.recipe import Recipe

    top = {name: field for name, field in Recipe.model_fields.items() if not _is_section(field.annotation)}
    text = table(("key", "type", "default", "meaning"), [_key(name, field) for name, field in top.items()])
    for section, field in Recipe.model_fields.items():
        if _is_section(field.annotation):
            rows = [_key(name, inner) for name, inner in field.annotation.model_fields.items()]
            text += f"\n### [{section}]\n\n{_sentence(field.description)}.\n\n"
            text += table(("key", "type", "default", "meaning"), rows)
    return text


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "model_fields")


def _key(name: str, field: Any) -> tuple[str, ...]:
    default = field.get_default(call_default_factory=True)
    return f"`{name}`", _type(field), "" if default is None else f"`{_toml(default)}`", field.description or ""


def _type(field: Any) -> str:
    """The type in a recipe's words, with the bounds that its rule has."""
    rules = {type(rule).__name__.lower(): rule for rule in field.metadata}
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{sign} {getattr(rules[name], name):.12g}" for name, sign in signs.items() if name in rules]
    return ", ".join([_words(field.annotation), *bounds])


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _words(get_args(annotation)[0])
    if get_origin(annotation) in (list, tuple):
        return f"list of {_words(get_args(annotation)[0])}s"
    if get_origin(annotation) is dict:
        return "table"
    if isinstance(annotation, type):  # a class of ours is written as a text
        return {int: "integer", float: "number", bool: "true or false"}.get(annotation, "text")
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return " or ".join(f"`{part}`" if isinstance(part, str) else _words(part) for part in parts)


def _toml(value: Any) -> str:
    import tomli_w

    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip() if value != {} else "{}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# Commands


def exit_codes() -> str:
    """What each exit code says, from the errors that have it."""
    from amc.system import errors

    found = {0: "done", 1: "unexpected: a fault of AMC", 130: "interrupted; the same command goes on"}
    rows = [(code, text, "") for code, text in found.items()]
    kinds: dict[int, list[Any]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.AmcError) and kind is not errors.AmcError:
            kinds.setdefault(kind.exit_code, []).append(kind)
    for code, group in kinds.items():
        texts, names = [kind.__doc__.split("\n")[0] for kind in group], [f"`{kind.__name__}`" for kind in group]
        rows.append((code, " ".join(texts), ", ".join(names)))
    return table(("code", "meaning", "error in Python"), [(str(code), *rest) for code, *rest in sorted(rows)])


def commands() -> str:
    """Every command with its arguments and options."""
    import typer

    from amc.cli import app

    return "\n".join(_command(name, command) for name, command in _walk("amc", typer.main.get_command(app)))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for part, inner in command.commands.items():
            yield from _walk(f"{name} {part}", inner)
    elif not command.hidden:
        yield name, command


def _command(name: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    text = f"## {name}\n\n{' '.join((command.help or '').split())}\n"
    rows = [(f"`{_written(p)}`", _default(p), p.help or "") for p in shown if p.name != "help"]
    return text + ("\n" + table(("argument or option", "default", "meaning"), rows) if rows else "")


def _written(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = (parameter.metavar or parameter.name).upper()
        return name if parameter.required else f"[{name}]"
    takes = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.strip('_').upper()}"
    return ", ".join([*reversed(parameter.opts), *parameter.secondary_opts]) + takes


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value is None or value is False or callable(value) else f"`{value}`"


# Rooms


def room_table() -> str:
    """The rooms in the order of the import contract, what each is, and which it imports."""
    return table(("room", "what it is", "imports"), rooms.rows())


PARTS: dict[str, Callable[[], str]] = {
    "built-in": built_in,
    "keys": keys,
    "exit-codes": exit_codes,
    "commands": commands,
    "rooms": room_table,
}


def written() -> dict[Path, str]:
    """Every file with generated parts, as it should be."""
    files = {DOCS / "rooms.svg": rooms.drawing()}
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        made = MARK.sub(lambda found: found[1] + found[2] + "\n" + PARTS[found[1]]() + "\n", text)
        if MARK.search(text):
            files[page] = made
    return files


def stale() -> list[str]:
    """The names of files that are not as the code has it."""
    return [
        path.name for path, text in written().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main() -> None:
    """Write all generated parts, or, with `--check`, say which are out of date."""
    if "--check" in sys.argv[1:]:
        old = stale()
        sys.exit(f"out of date: {', '.join(old)}; run `python docs/generate.py`" if old else 0)
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "predictor"), str(DOCS.parent / "search")]
    main()

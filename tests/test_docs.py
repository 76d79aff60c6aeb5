"""README and documents: what they show runs, the commands they name exist, what is generated is up to date."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from amc.cli import app
from amc.cost.budget import parse_budgets
from amc.job.recipe import list_recipes, load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:)(?P<file>[^)#\s]*)(?:#[^)]*)?\)")
STEPS = re.compile(r"\s*(?:&&|\|\||;|\|)\s*")


def blocks(page: Path, language: str) -> list[re.Match[str]]:
    return [found for found in FENCE.finditer(page.read_text(encoding="utf-8")) if found["language"] == language]


def command_lines() -> Iterator[list[str]]:
    """Every call of `amc` in a shell block, and after the `$` of a printed session, as a list of words."""
    for page in PAGES:
        lines = [line for block in blocks(page, "sh") for line in block["text"].replace("\\\n", " ").splitlines()]
        lines += [line[2:] for block in blocks(page, "") for line in block["text"].splitlines() if line[:2] == "$ "]
        for line in lines:
            for step in STEPS.split(line.partition(" #")[0]):
                words = shlex.split(step, comments=True)
                if "amc.cli" in words:  # torchrun ... -m amc.cli
                    words = ["amc", *words[words.index("amc.cli") + 1 :]]
                if words[:1] == ["amc"]:
                    yield words


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a page runs from top to bottom in an empty folder; a block with a title is a file there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))  # networks are traced in a process
    scope: dict[str, Any] = {"__name__": "page"}
    before = set(sys.modules)
    for block in blocks(page, "python"):
        if block["title"]:
            (tmp_path / block["title"]).write_text(block["text"], encoding="utf-8")
        else:
            line = page.read_text(encoding="utf-8")[: block.start()].count("\n") + 1
            tree = ast.increment_lineno(ast.parse(block["text"]), line)
            exec(compile(tree, page, "exec"), scope)
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").is_file():
            del sys.modules[name]


@pytest.mark.parametrize("words", sorted({tuple(words) for words in command_lines()}), ids=" ".join)
def test_commands_exist(words: tuple[str, ...]) -> None:
    """Every `amc` line is one that the command line takes: command, options and the values that can be checked."""
    command, arguments = typer.main.get_command(app), words[1:]
    context = command.make_context("amc", list(arguments)) if arguments else None
    while context is not None and hasattr(command, "resolve_command"):
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(command.name, list(arguments), parent=context)
    given = context.params if context is not None else {}
    settings = dict(setting.split("=", 1) for setting in given.get("set_") or [])
    recipe = given.get("recipe")
    if recipe in (None, *list_recipes()):
        load_recipe(recipe, settings)
    else:
        assert words[1] in ("bench", "worker") or "." in recipe, f"{recipe} is no recipe"
    if given.get("budget"):
        parse_budgets([given["budget"]] if isinstance(given["budget"], str) else given["budget"])


def test_commands_in_sentences_exist() -> None:
    """An `amc ...` within a sentence names a command that there is, with options that it has."""
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for words in (found.split() for found in re.findall(r"`amc ([^`]+)`", prose)):
            command = typer.main.get_command(app)
            while hasattr(command, "commands") and words and not words[0].startswith("-"):
                context = command.make_context(command.name, words[:1], resilient_parsing=True)
                _, command, _ = command.resolve_command(context, [words.pop(0)])
                assert command is not None, f"{page.name} names a command that there is not: {words}"
            known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
            given = {word for word in words if word.startswith("-")}
            assert given <= known | {"--help"}, f"{page.name}: {command.name} {' '.join(words)}"


def test_toml_blocks_are_recipes() -> None:
    """Every TOML that a page shows is a recipe."""
    shown = [block["text"] for page in PAGES for block in blocks(page, "toml")]
    assert shown
    for text in shown:
        parse_recipe(text)


def test_links_lead_somewhere() -> None:
    """Every relative link of README, CONTRIBUTING and the documents leads to a file."""
    for page in PAGES:
        for found in LINK.finditer(page.read_text(encoding="utf-8")):
            assert not found["file"] or (page.parent / found["file"]).exists(), f"{page.name}: {found['file']}"


def test_troubleshooting_quotes_real_messages() -> None:
    """Every message on the page of troubles is one of the code's, `...` standing for what it names."""
    said = "\n".join(text for path in (ROOT / "amc").rglob("*.py") for text in _texts(path))
    quoted = re.findall(r"\*\*`(.*?)`", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    pieces = {piece.strip() for text in quoted for piece in text.split("...")}
    assert len(quoted) > 30
    assert {piece for piece in pieces if piece not in said} == set()


def _texts(path: Path) -> Iterator[str]:
    """Every text in a module's code; a formatted one without what is put in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "\0".join(str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values)


def test_named_files_exist() -> None:
    """A path of the repository that a page names is there."""
    named = re.compile(r"`((?:amc|search|predictor|recipes|tests|docs)/[\w./]*)`")
    for page in PAGES:
        for found in named.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / found).exists(), f"{page.name} names {found}"


def test_the_two_commands() -> None:
    """README is one short page whose first block is the two commands, and `.ci/run` runs the second of them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    first = [line.partition("  #")[0].strip() for line in blocks(ROOT / "README.md", "sh")[0]["text"].splitlines()]
    assert first == ["pip install . && amc compress", "pip install -e '.[test]' && pytest"]
    for extra in re.findall(r"pip install[^\n]*\[([\w,]+)\]", " ".join(page.read_text("utf-8") for page in PAGES)):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        assert set(extra.split(",")) <= set(extras)


def test_generated_parts_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `docs/generate.py` would write is what stands there; if not, run `python docs/generate.py`."""
    pytest.importorskip("grimp", reason="the rooms are read with grimp, which import-linter brings")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    generate = importlib.import_module("generate")
    assert generate.stale() == []


def test_every_page_is_in_the_navigation() -> None:
    """A page of docs/ that mkdocs.yml does not name would not be found."""
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in listed]

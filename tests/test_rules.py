"""Rules for the tests themselves."""

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.rglob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(Path(__file__).parent)))
def test_every_test_states_its_rule(path: Path) -> None:
    """Its docstring says what must hold: the name alone is too short."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    silent = [node.name for node in functions if node.name.startswith("test") and not ast.get_docstring(node)]
    assert not silent, f"{path}: give a docstring to {', '.join(silent)}"

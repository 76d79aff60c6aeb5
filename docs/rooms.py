"""The rooms of the package, as a table and as a drawing: from the import contract in pyproject.toml and the imports."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORES = ("amc_search", "amc_predictor")
WIDTH, HEIGHT = 68, 30  # of a cell, in pixels


def rows() -> list[tuple[str, ...]]:
    """Of each room, in the order of the import contract: its name, what it is, and which it imports."""
    arrows = _arrows()
    found = []
    for layer in _layers():
        for room in layer:
            below = [other for group in _layers() for other in group if (room, other) in arrows]
            found.append((f"`{room}`", _summary(room), ", ".join(f"`{other}`" for other in below)))
    return found


def _layers() -> list[list[str]]:
    """The rooms, uppermost first; rooms of one layer do not import each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contract = next(contract for contract in settings["contracts"] if contract["type"] == "layers")
    home = "".join(f"{name}." for name in contract.get("containers", []))
    layers = [[home + room.strip(" ()") for room in re.split(r"[|:]", layer)] for layer in contract["layers"]]
    known = {room for layer in layers for room in layer}
    return layers + [[core] for core in CORES if core not in known]


def _arrows() -> set[tuple[str, str]]:
    """Which room imports which other."""
    import grimp

    graph = grimp.build_graph("amc", *CORES, exclude_type_checking_imports=True, cache_dir=None)
    names = [room for layer in _layers() for room in layer]

    def room_of(module: str) -> str | None:
        return next((name for name in names if f"{module}.".startswith(f"{name}.")), None)

    pairs = {
        (room_of(module), room_of(other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    return {(source, target) for source, target in pairs if source and target and source != target}


def _summary(room: str) -> str:
    text = (importlib.import_module(room).__doc__ or "").strip()
    return " ".join(text.split("\n\n")[0].split())


def _short(room: str) -> str:
    return room.removeprefix("amc.").removeprefix("amc_")


def drawing() -> str:
    """An SVG, an N-squared chart: rooms down the diagonal, a dot where a row's room imports a column's.

    No room imports upwards, so left of the diagonal there is none.
    """
    names, arrows = [room for layer in _layers() for room in layer], _arrows()
    cells = []
    for row, source in enumerate(names):
        for column, target in enumerate(names):
            if row == column or (source, target) in arrows:
                kind, text = ("room", _short(source)) if row == column else ("import", "•")
                x, y = column * WIDTH, row * HEIGHT
                cells.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDTH - 2}" height="{HEIGHT - 2}"/>')
                cells.append(f'<text class="{kind}" x="{x + WIDTH // 2}" y="{y + HEIGHT // 2 + 4}">{text}</text>')
    width, height = len(names) * WIDTH, len(names) * HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" text-anchor="middle">',
            "<style>text { font: 13px sans-serif; fill: #1d2b40 } text.room { fill: #fff }",
            "rect.room { fill: #2f5d9b } rect.import { fill: #dbe6f5 }</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *cells,
            "</svg>\n",
        ]
    )

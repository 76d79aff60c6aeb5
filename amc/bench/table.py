"""Tables of figures: aligned for a terminal, as Markdown for a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

MISSING = "-"
WIDEST = 1000  # characters: no cell is ever wrapped


@dataclass(frozen=True)
class Table:
    """Heads, and rows of as many cells.

    Attributes:
        texts: how many of the first columns are aligned to the left; the others hold numbers.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    texts: int = 1

    @property
    def text(self) -> str:
        """For a terminal: the title, the heads, a line a row."""
        drawn = rich_table.Table(box=None, pad_edge=False, padding=(0, 1))
        for column, head in enumerate(self.heads):
            drawn.add_column(Text(head), justify="left" if column < self.texts else "right")
        for row in self.rows:
            drawn.add_row(*map(Text, row))
        console = Console(file=StringIO(), width=WIDEST, color_system=None)
        with console.capture() as capture:
            console.print(drawn)
        lines = [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join([self.title, *lines] if self.title else lines)

    @property
    def markdown(self) -> str:
        """For a file."""
        marks = [" --- " if column < self.texts else " ---: " for column in range(len(self.heads))]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.heads, *self.rows)]
        title = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*title, lines[0], f"|{'|'.join(marks)}|", *lines[1:]])

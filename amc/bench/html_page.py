"""A page of plots and tables that needs no network: plotly's script is inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from amc.bench.table import Table

OURS, UNIFORM, GREY = "#2f7de1", "#e08a00", "#7a818b"
PALETTE = (
    "#e08a00", "#1b9e77", "#b05cc6", "#e0483e", "#8c6d31", "#17a2b8", "#d4a017", "#7a818b", "#c2185b", "#5a7d1e",
    "#6a51a3", "#2b8cbe", "#fb6a4a", "#74a18e", "#a65628",
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """What stands under one heading: lines of text, captioned plots, a table."""

    title: str
    lines: Sequence[str] = ()
    plots: Sequence[tuple[str, go.Figure]] = ()
    table: Table | None = None


def plot(traces: Sequence[Any], *, x: str, y: str, height: int = 440) -> go.Figure:
    """Traces in one pair of axes."""
    axis = {"automargin": True, "zeroline": False}
    return go.Figure(
        list(traces),
        go.Layout(
            template="none", height=height, margin={"l": 48, "r": 12, "t": 12, "b": 40}, hovermode="closest",
            xaxis={"title": {"text": x, "standoff": 8}, **axis}, yaxis={"title": {"text": y, "standoff": 8}, **axis},
            legend={"orientation": "h", "x": 0, "y": -0.18},
        ),
    )  # fmt: skip


def page(title: str, lines: Sequence[str], sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """The HTML. All text is escaped; that of plots is to be escaped by whoever makes them, for plotly reads tags."""
    loader = Environment(loader=PackageLoader("amc.bench", "."), autoescape=True, undefined=StrictUndefined)
    drawn = [
        [(caption, Markup(figure.to_html(full_html=False, include_plotlyjs=False))) for caption, figure in of.plots]
        for of in sections
    ]
    values = {"title": title, "lines": lines, "sections": list(zip(sections, drawn, strict=True)), "notes": notes}
    return loader.get_template("page.html.j2").render(script=Markup(get_plotlyjs()), **values)

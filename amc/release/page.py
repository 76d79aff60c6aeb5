"""One self-contained HTML page: plotly's script inside, nothing loaded from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, figures: dict[str, go.Figure], values: dict[str, Any]) -> str:
    """Fill `templates/TEMPLATE`; the figures are drawn in the elements of their names. All values are escaped."""
    script = Markup(get_plotlyjs())  # not the user's: the one text that is not escaped
    plots = {name: figure.to_plotly_json() for name, figure in figures.items()}
    return ENVIRONMENT.get_template(template).render(plotly=script, plots=plots, **values)

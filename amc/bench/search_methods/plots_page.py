"""The plots of a comparison, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly import graph_objects as go

from amc.bench.html_page import GREY, PALETTE, Section, page, plot
from amc.bench.html_page import OURS as OUR_COLOUR
from amc.bench.search_methods.bench_recipe import OURS
from amc.bench.search_methods.findings import Findings
from amc.bench.search_methods.searches import Search, front_caps
from amc.bench.search_methods.tables import goal_lines, headline, tables

MOMENTS = 60  # points of a curve over seconds
BEST = "best objective value under the cap"
Values = NDArray[np.float64]
Rows = dict[str, dict[str, Any]]  # method -> cap -> mean and ends


def plots_page(found: Findings, results: dict[str, Any]) -> str:
    """`plots.html`: curves under each cap, the front of each method, predicted against true, and the tables."""
    methods, figures = found.recipe.named_methods, results["figures"]
    sections = [Section("Goals", goal_lines(results))]
    for cap in found.recipe.cap_names:
        if searches := _longest(found, cap):
            by_trials = (
                "Best objective value by number of trials: mean over the seeds, and the range from worst to best.",
                curves(searches, "trials", methods),
            )
            by_time = ("The same by seconds: the trials' and the method's own.", curves(searches, "seconds", methods))
            sections.append(Section(f"At most {cap}", plots=[by_trials, by_time]))
    if len(sections) > 2:
        drawn = _fronts(_by_method(figures["searches"], str(found.recipe.trials)), found.recipe.cap_names)
        sections.append(Section("Front", plots=[("Best objective value of each method under each cap.", drawn)]))
    if any(of["ours"] for of in figures["front"].values()):
        caption = "One study of ours for all caps, beside studies of others made for each cap alone."
        drawn = several(figures["front"], front_caps(found.recipe))
        sections.append(Section("One study, several caps", plots=[(caption, drawn)]))
    if found.orders:
        caption = "Fresh random policies near each cap: what our predictor said, and what was measured."
        sections.append(Section("Predicted against true", plots=[(caption, orders(found))]))
    sections += [Section(table.title, table=table) for table in tables(results)]
    title = f"{found.recipe.name}: methods of search compared"
    note = "Differences and intervals over the seeds stand in results.json, with the machine and the versions."
    return page(title, [found.recipe.about, *headline(results)], sections, [note])


def _longest(found: Findings, cap: str) -> list[Search]:
    """Of each method the searches with the most trials, which show the shorter ones' range as well."""
    kept: list[Search] = []
    for method in dict.fromkeys(one.spec.method for one in found.searches if one.spec.cap == cap):
        mine = [one for one in found.searches if (one.spec.method, one.spec.cap) == (method, cap)]
        budgets = (found.recipe.trials, found.recipe.long)
        mine = [one for one in mine if one.spec.trials in budgets and one.values]
        most = max((one.spec.trials for one in mine), default=0)
        kept += [one for one in mine if one.spec.trials == most]
    return kept


def curves(searches: Sequence[Search], against: str, methods: Sequence[str]) -> go.Figure:
    """Best value so far, mean over seeds with the range from worst to best, against "trials" or "seconds".

    `methods` are all that there are: each has the same colour in every plot.
    """
    traces: list[go.Scatter] = []
    lows: list[float] = []
    end = max(one.price + len(one.values) for one in searches)
    latest = max(float(one.seconds[-1]) for one in searches)
    for method in dict.fromkeys(one.spec.method for one in searches):
        mine = [one for one in searches if one.spec.method == method]
        if against == "trials":
            x = mine[0].price + np.arange(1, max(len(one.values) for one in mine) + 1, dtype=np.float64)
            rows = np.stack([_held(one.best_so_far(), len(x)) for one in mine])
            x, rows = np.append(x, end), np.concatenate([rows, rows[:, -1:]], axis=1)
        else:
            first = max(float(one.seconds[0]) for one in mine)
            x = np.unique(np.append(np.geomspace(max(first, 1e-3), max(latest, first, 1e-3), MOMENTS), first))
            rows = np.stack([_at(one, x) for one in mine])
        traces += _band(method, x, rows, _colour(method, methods))
        lows.append(float(np.median(rows.mean(axis=0))))
    figure = plot(traces, x="trials" if against == "trials" else "seconds, the trials' and the method's own", y=BEST)
    top, bottom = max(float(one.best()) for one in searches), min(lows)
    margin = max(0.1 * (top - bottom), 1e-4)
    figure.update_yaxes(range=[bottom - 2 * margin, top + margin])
    figure.update_xaxes(type="log", dtick="D2")
    return figure


def _held(values: Values, length: int) -> Values:
    """Values (n,) as (length,): the last one holds on."""
    return np.concatenate([values, np.full(length - len(values), values[-1])])


def _at(one: Search, moments: Values) -> Values:
    """Best value of a search at each moment (m,), in seconds from its start."""
    place = np.searchsorted(one.seconds, moments, side="right") - 1
    best: Values = np.where(place >= 0, one.best_so_far()[np.maximum(place, 0)], 0.0)
    return best


def _band(method: str, x: Values, rows: Values, colour: str) -> list[go.Scatter]:
    """A line of means and, for several seeds (s, n), a band from the worst to the best."""
    name, width = escape(method), 3.5 if method == OURS else 1.8
    shared = {"x": x, "mode": "lines", "name": name, "legendgroup": name}
    line = go.Scatter(
        y=rows.mean(axis=0), line={"color": colour, "width": width, "shape": "hv"},
        hovertemplate=f"{name}<br>%{{x:.4g}}: %{{y:.4f}}<extra></extra>", **shared,
    )  # fmt: skip
    if len(rows) < 2:
        return [line]
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    edge = {**shared, "line": {"width": 0, "color": colour, "shape": "hv"}, "showlegend": False, "hoverinfo": "skip"}
    filled = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.13)"}
    return [go.Scatter(y=rows.min(axis=0), **edge), go.Scatter(y=rows.max(axis=0), **edge, **filled), line]


def _by_method(searches: dict[str, Any], trials: str) -> Rows:
    """The figures of one number of trials."""
    methods = dict.fromkeys(method for of in searches.values() for method in of.get(trials, {}))
    return {m: {cap: of[trials][m] for cap, of in searches.items() if m in of.get(trials, {})} for m in methods}


def several(figures: dict[str, Any], caps: Sequence[str]) -> go.Figure:
    """Our one study beside the studies made for each cap alone."""
    rows: Rows = {OURS: {cap: figures[cap]["ours"] for cap in caps if figures[cap]["ours"]}}
    for cap in caps:
        for method, cell in figures[cap]["others"].items():
            rows.setdefault(method, {})[cap] = cell
    return _fronts(rows, caps)


def _fronts(rows: Rows, caps: Sequence[str]) -> go.Figure:
    """Best value under each cap, one line a method, with intervals over the seeds."""
    traces = []
    for method, cells in rows.items():
        halves = [(cell["high"] or cell["mean"]) - cell["mean"] for cell in cells.values()]
        colour = _colour(method, list(rows))
        traces.append(go.Scatter(
            x=[escape(cap) for cap in cells], y=[cell["mean"] for cell in cells.values()], mode="lines+markers",
            name=escape(method), error_y={"type": "data", "array": halves, "color": colour, "thickness": 1},
            line={"color": colour, "width": 3.5 if method == OURS else 1.6}, marker={"color": colour, "size": 6},
        ))  # fmt: skip
    figure = plot(traces, x="cap", y=BEST)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=[escape(cap) for cap in caps])
    return figure


def orders(found: Findings) -> go.Figure:
    """Predicted against true objective values of fresh random policies, one colour a cap."""
    ends = [value for one in found.orders for value in (*one.values, *one.predicted)]
    line = [min(ends), max(ends)]
    style = {"color": GREY, "width": 1.2, "dash": "dot"}
    traces = [go.Scatter(x=line, y=line, mode="lines", name="exact", hoverinfo="skip", line=style)]
    for place, cap in enumerate(dict.fromkeys(one.spec.cap for one in found.orders)):
        mine = [one for one in found.orders if (one.spec.cap, one.spec.trials) == (cap, found.recipe.trials)]
        traces.append(go.Scatter(
            x=[value for one in mine for value in one.values], y=[mean for one in mine for mean in one.predicted],
            mode="markers", name=escape(cap),
            marker={"color": PALETTE[place % len(PALETTE)], "size": 6, "opacity": 0.7},
            hovertemplate="measured %{x:.4f}<br>predicted %{y:.4f}<extra></extra>",
        ))  # fmt: skip
    return plot(traces, x="measured objective value", y="predicted objective value")


def _colour(method: str, methods: Sequence[str]) -> str:
    others = [name for name in methods if name != OURS]
    return OUR_COLOUR if method == OURS else PALETTE[others.index(method) % len(PALETTE)]

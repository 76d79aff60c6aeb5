"""The plots of a contest, on one page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc.bench.search_methods.bench_recipe import OURS
from amc.bench.search_methods.findings import Findings
from amc.bench.search_methods.searches import Search, front_caps
from amc.bench.search_methods.tables import goal_lines, headline, tables
from amc.release.page import render_page
from amc.release.plots import DENSE, Plot
from amc.release.plots import OURS as OUR_COLOUR

PALETTE = (
    "#e08a00", "#1b9e77", "#b05cc6", "#e0483e", "#8c6d31", "#17a2b8", "#d4a017", "#7a818b", "#c2185b", "#5a7d1e",
    "#6a51a3", "#2b8cbe", "#fb6a4a", "#74a18e", "#a65628",
)  # fmt: skip
MOMENTS = 60  # points of a curve over seconds
Values = NDArray[np.float64]


def plots_page(found: Findings, results: dict[str, Any]) -> str:
    """`plots.html`: curves under each cap, the front of each method, predicted against true, and the tables."""
    drawn: dict[str, Plot] = {}
    sections = []
    for number, cap in enumerate(found.recipe.cap_names):
        names = {"trials": f"trials-{number}", "seconds": f"seconds-{number}"}
        searches = _longest(found, cap)
        if searches:
            drawn[names["trials"]] = curves(searches, "trials", found.recipe.named_methods)
            drawn[names["seconds"]] = curves(searches, "seconds", found.recipe.named_methods)
            sections.append({"cap": cap, **names})
    if len(sections) > 1:
        drawn["front"] = front(results["figures"]["searches"], str(found.recipe.trials))
    if any(of["ours"] for of in results["figures"]["front"].values()):
        drawn["several"] = several(results["figures"]["front"], front_caps(found.recipe))
    if found.orders:
        drawn["orders"] = orders(found)
    values = {
        "title": f"{found.recipe.name}: methods of search compared",
        "about": found.recipe.about,
        "headline": headline(results),
        "goals": goal_lines(results),
        "tables": tables(results),
        "sections": sections,
    }
    return render_page("contest.html.j2", drawn, values)


def _longest(found: Findings, cap: str) -> list[Search]:
    """Of each method the searches with the most labels, which show the shorter ones' range as well."""
    kept: list[Search] = []
    for method in dict.fromkeys(one.spec.method for one in found.searches if one.spec.cap == cap):
        mine = [one for one in found.searches if (one.spec.method, one.spec.cap) == (method, cap)]
        budgets = (found.recipe.trials, found.recipe.long)
        mine = [one for one in mine if one.spec.trials in budgets and one.labels]
        most = max((one.spec.trials for one in mine), default=0)
        kept += [one for one in mine if one.spec.trials == most]
    return kept


def curves(searches: Sequence[Search], against: str, methods: Sequence[str]) -> Plot:
    """Best label so far, mean over seeds with the range from worst to best, against "trials" or "seconds".

    `methods` are all that there are: each has the same colour in every plot.
    """
    traces: list[Plot] = []
    lows: list[float] = []
    end = max(one.price + len(one.labels) for one in searches)
    latest = max(float(one.seconds[-1]) for one in searches)
    for method in dict.fromkeys(one.spec.method for one in searches):
        mine = [one for one in searches if one.spec.method == method]
        if against == "trials":
            x = mine[0].price + np.arange(1, max(len(one.labels) for one in mine) + 1, dtype=np.float64)
            rows = np.stack([_held(one.best_so_far(), len(x)) for one in mine])
            x, rows = np.append(x, end), np.concatenate([rows, rows[:, -1:]], axis=1)
        else:
            first = max(float(one.seconds[0]) for one in mine)
            x = np.unique(np.append(np.geomspace(max(first, 1e-3), max(latest, first, 1e-3), MOMENTS), first))
            rows = np.stack([_at(one, x) for one in mine])
        traces += _band(method, x, rows, _colour(method, methods))
        lows.append(float(np.median(rows.mean(axis=0))))
    title = "labels" if against == "trials" else "seconds, labels and the method's own"
    layout = _layout(x=title, y="best label under the cap")
    top, bottom = max(float(one.best()) for one in searches), min(lows)
    margin = max(0.1 * (top - bottom), 1e-4)
    layout["yaxis"]["range"] = [bottom - 2 * margin, top + margin]
    layout["xaxis"] |= {"type": "log", "dtick": "D2"}
    return {"data": traces, "layout": layout}


def _held(values: Values, length: int) -> Values:
    """Values (n,) as (length,): the last one holds on."""
    return np.concatenate([values, np.full(length - len(values), values[-1])])


def _at(one: Search, moments: Values) -> Values:
    """Best label of a search at each moment (m,), in seconds from its start."""
    place = np.searchsorted(one.seconds, moments, side="right") - 1
    best: Values = np.where(place >= 0, one.best_so_far()[np.maximum(place, 0)], 0.0)
    return best


def _band(method: str, x: Values, rows: Values, colour: str) -> list[Plot]:
    """A line of means and, for several seeds (s, n), a band from the worst to the best."""
    name = escape(method)
    line = {
        "type": "scatter", "mode": "lines", "x": x.tolist(), "y": rows.mean(axis=0).tolist(), "name": name,
        "legendgroup": name, "line": {"color": colour, "width": 3.5 if method == OURS else 1.8, "shape": "hv"},
        "hovertemplate": f"{name}<br>%{{x:.4g}}: %{{y:.4f}}<extra></extra>",
    }  # fmt: skip
    if len(rows) < 2:
        return [line]
    edge = {
        "type": "scatter", "mode": "lines", "x": x.tolist(), "line": {"width": 0, "color": colour, "shape": "hv"},
        "name": name, "legendgroup": name, "showlegend": False, "hoverinfo": "skip",
    }  # fmt: skip
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    low = {**edge, "y": rows.min(axis=0).tolist()}
    high = {**edge, "y": rows.max(axis=0).tolist(), "fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.13)"}
    return [low, high, line]


def front(searches: dict[str, dict[str, Any]], trials: str) -> Plot:
    """Best label under each cap, one line a method, with intervals over the seeds."""
    methods = list(dict.fromkeys(method for of in searches.values() for method in of.get(trials, {})))
    rows = {m: {cap: of[trials][m] for cap, of in searches.items() if m in of.get(trials, {})} for m in methods}
    return _fronts(rows, list(searches))


def several(figures: dict[str, Any], caps: Sequence[str]) -> Plot:
    """Our one study beside the studies made for each cap alone."""
    rows: dict[str, dict[str, Any]] = {OURS: {cap: figures[cap]["ours"] for cap in caps if figures[cap]["ours"]}}
    for cap in caps:
        for method, cell in figures[cap]["others"].items():
            rows.setdefault(method, {})[cap] = cell
    return _fronts(rows, caps)


def _fronts(rows: dict[str, dict[str, Any]], caps: Sequence[str]) -> Plot:
    traces = []
    for place, (method, cells) in enumerate(rows.items()):
        halves = [(cell["high"] or cell["mean"]) - cell["mean"] for cell in cells.values()]
        colour = OUR_COLOUR if method == OURS else PALETTE[place % len(PALETTE)]
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": escape(method), "x": [escape(cap) for cap in cells],
            "y": [cell["mean"] for cell in cells.values()],
            "error_y": {"type": "data", "array": halves, "color": colour, "thickness": 1},
            "line": {"color": colour, "width": 3.5 if method == OURS else 1.6}, "marker": {"color": colour, "size": 6},
        })  # fmt: skip
    layout = _layout(x="cap", y="best label under the cap")
    layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": [escape(cap) for cap in caps]}
    return {"data": traces, "layout": layout}


def orders(found: Findings) -> Plot:
    """Predicted against true labels of fresh random policies, one colour a cap."""
    traces: list[Plot] = []
    ends = [value for one in found.orders for value in (*one.labels, *one.predicted)]
    line = [min(ends), max(ends)]
    for place, cap in enumerate(dict.fromkeys(one.spec.cap for one in found.orders)):
        mine = [one for one in found.orders if (one.spec.cap, one.spec.trials) == (cap, found.recipe.trials)]
        traces.append({
            "type": "scatter", "mode": "markers", "name": escape(cap),
            "x": [label for one in mine for label in one.labels], "y": [mean for one in mine for mean in one.predicted],
            "marker": {"color": PALETTE[place % len(PALETTE)], "size": 6, "opacity": 0.7},
            "hovertemplate": "measured %{x:.4f}<br>predicted %{y:.4f}<extra></extra>",
        })  # fmt: skip
    exact = {
        "type": "scatter", "mode": "lines", "x": line, "y": line, "name": "exact", "hoverinfo": "skip",
        "line": {"color": DENSE, "width": 1.2, "dash": "dot"},
    }  # fmt: skip
    return {"data": [exact, *traces], "layout": _layout(x="measured label", y="predicted label")}


def _colour(method: str, methods: Sequence[str]) -> str:
    others = [name for name in methods if name != OURS]
    return OUR_COLOUR if method == OURS else PALETTE[others.index(method) % len(PALETTE)]


def _layout(*, x: str, y: str) -> Plot:
    def axis(title: str) -> Plot:
        return {"title": {"text": title, "standoff": 8}, "automargin": True, "zeroline": False}

    return {
        "height": 440,
        "margin": {"l": 48, "r": 12, "t": 12, "b": 40},
        "xaxis": axis(x),
        "yaxis": axis(y),
        "legend": {"orientation": "h", "x": 0, "y": -0.18},
        "hovermode": "closest",
    }

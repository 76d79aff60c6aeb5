"""The plots of a report as plotly's own JSON: numbers in, `{"data": [...], "layout": {...}}` out.

Text and grid colours are left to the page (templates/base.html.j2), so that one plot serves light, dark and print.
Names from outside are escaped here: plotly reads a little HTML in labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from amc.cost.budget import Unit, format_cost, format_macs
from amc.release.comparison import STAGES, seconds_text
from amc.study.pareto import non_dominated

Plot = dict[str, Any]

OURS, UNIFORM, DENSE, MEASURED, OVER = "#2f7de1", "#e08a00", "#7a818b", "#7fb0ea", "#b4bac2"
ARMS = {  # colour of what each arm of the search proposed, and what it is called
    "start": ("#8b929c", "starting set"),
    "improvement": ("#2f7de1", "expected improvement"),
    "merit": ("#8c6d31", "predicted merit"),
    "disagreement": ("#b05cc6", "disagreement"),
    "distance": ("#1b9e77", "distance"),
    "seernet": ("#b05cc6", "paper's acquisition"),
    "random": ("#d4a017", "random"),
    "candidate": ("#e0483e", "best by prediction"),
}
AXES = {
    "macs": "multiply-adds (MACs)",
    "params": "parameters",
    "bytes": "bytes of weights",
    "activation_bytes": "peak activation bytes",
}
ROW = 21  # pixels of a horizontal bar
STOPPED = "trial stopped early"
PARTLY = " of the images seen until it was stopped"
CROSS = {"symbol": "x-thin", "size": 7, "color": OVER, "line": {"color": OVER, "width": 1.4}}


@dataclass(frozen=True)
class Mark:
    """One network that stands out in the front.

    Attributes:
        cost: in the unit of the plot.
        accuracy: on the validation split.
        kind: "dense", "released", "finetuned" or "uniform".
    """

    cost: float
    accuracy: float
    kind: str


MARKS = {
    "dense": ("dense", {"color": DENSE, "symbol": "square", "size": 12}),
    "released": ("released, before fine-tuning", {"color": OURS, "symbol": "diamond", "size": 14}),
    "finetuned": (
        "released, fine-tuned",
        {"color": OURS, "symbol": "star", "size": 16, "line": {"width": 1, "color": "#fff"}},
    ),
    "uniform": ("uniform, before fine-tuning", {"color": UNIFORM, "symbol": "triangle-up", "size": 14}),
}


def front_plot(
    unit: Unit,
    costs: Sequence[float],
    accuracies: Sequence[float],
    feasible: Sequence[bool],
    marks: Sequence[Mark],
    limit: float | None = None,
    predicted: Sequence[Mapping[str, float]] = (),
    stopped: Sequence[bool] = (),
) -> Plot:
    """Every trial by cost and accuracy, what stands out, and, where given, the predicted front.

    Args:
        unit: of the costs.
        costs: (n,) of the trials.
        accuracies: (n,) of the trials, on the validation split.
        feasible: (n,) under all caps.
        marks: drawn on top.
        limit: the cap in `unit`.
        predicted: points {cost, mean, low, high}, by rising cost.
        stopped: (n,) trials stopped early: their accuracy is of a part of the images, so they are marked and have no
            say in the front; empty means none.
    """
    stopped = stopped or [False] * len(costs)
    whole = [i for i, of in enumerate(stopped) if not of]
    traces = _predicted_traces(unit, predicted) if predicted else []
    traces += _trial_traces(unit, costs, accuracies, feasible, stopped, limit)
    best = [whole[i] for i in non_dominated([costs[i] for i in whole], [accuracies[i] for i in whole])]
    traces.append(
        {
            **_points([costs[i] for i in best], [accuracies[i] for i in best], "front of the trials"),
            "mode": "lines",
            "line": {"color": MEASURED, "width": 2, "shape": "hv"},
            "hoverinfo": "skip",
        }
    )
    traces += [_mark_trace(unit, mark) for mark in marks]
    layout = _layout(460, x=AXES[unit], y="accuracy on the validation split")
    shown = [*(mark.accuracy for mark in marks), *([max(p["high"] for p in predicted)] if predicted else [])]
    layout["xaxis"] |= {"tickformat": "~s", "rangemode": "tozero"}
    layout["yaxis"] |= {"tickformat": ".0%", "range": _upper_range([accuracies[i] for i in whole], shown)}
    if limit is not None:
        _draw_cap(layout, limit)
    return {"data": traces, "layout": layout}


def _trial_traces(
    unit: Unit,
    costs: Sequence[float],
    accuracies: Sequence[float],
    feasible: Sequence[bool],
    stopped: Sequence[bool],
    limit: float | None,
) -> list[Plot]:
    """The trials: stopped early, over a cap, under all caps; a kind without trials has no trace."""
    early = [i for i, of in enumerate(stopped) if of]
    over = [i for i, of in enumerate(stopped) if not of and not feasible[i]]
    under = [i for i, of in enumerate(stopped) if not of and feasible[i]]
    hollow = {"color": "rgba(0,0,0,0)", "size": 8, "line": {"color": OVER, "width": 1.6}}
    kinds: list[tuple[list[int], str, Plot, str]] = [
        (early, STOPPED, CROSS, PARTLY),
        (over, "trial over a cap", hollow, ""),
        (under, "trial under all caps" if limit else "trial", {"color": MEASURED, "size": 8}, ""),
    ]
    return [
        {
            **_points([costs[i] for i in rows], [accuracies[i] for i in rows], name),
            "marker": style,
            "customdata": [[i + 1, format_cost(unit, costs[i])] for i in rows],
            "hovertemplate": f"trial %{{customdata[0]}}<br>%{{y:.2%}}{partly} at %{{customdata[1]}}<extra></extra>",
        }
        for rows, name, style, partly in kinds
        if rows
    ]


def _mark_trace(unit: Unit, mark: Mark) -> Plot:
    name, style = MARKS[mark.kind]
    return {
        **_points([mark.cost], [mark.accuracy], name),
        "marker": style,
        "customdata": [[format_cost(unit, mark.cost)]],
        "hovertemplate": f"{name}<br>%{{y:.2%}} at %{{customdata[0]}}<extra></extra>",
    }


def _predicted_traces(unit: Unit, predicted: Sequence[Mapping[str, float]]) -> list[Plot]:
    costs, lows, highs = ([point[key] for point in predicted] for key in ("cost", "low", "high"))
    band = {
        **_points(costs + costs[::-1], highs + lows[::-1], "90% interval"),
        "mode": "lines",
        "fill": "toself",
        "fillcolor": "rgba(47,125,225,0.16)",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    line = {
        **_points(costs, [point["mean"] for point in predicted], "predicted front"),
        "mode": "lines+markers",
        "line": {"color": OURS, "width": 2.5},
        "marker": {"color": OURS, "size": 7},
        "customdata": [[format_cost(unit, p["cost"]), p["low"], p["high"]] for p in predicted],
        "hovertemplate": "predicted %{y:.2%} (%{customdata[1]:.2%} to %{customdata[2]:.2%})"
        "<br>%{customdata[0]}<extra></extra>",
    }
    return [band, line]


def _draw_cap(layout: Plot, limit: float) -> None:
    layout["shapes"] = [
        {
            "type": "line", "x0": limit, "x1": limit, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": DENSE, "width": 1.5, "dash": "dash"},
        }
    ]  # fmt: skip
    layout["annotations"] = [
        {
            "x": limit, "y": 0, "yref": "paper", "text": "cap", "showarrow": False,
            "xanchor": "left", "yanchor": "bottom", "xshift": 4,
        }
    ]  # fmt: skip


def _upper_range(accuracies: Sequence[float], marked: Sequence[float]) -> list[float]:
    """An axis that holds nine in ten trials and every mark: a few collapsed networks must not flatten the rest."""
    ordered = sorted(accuracies) or [0.0]
    low, high = min([ordered[len(ordered) // 10], *marked]), max([ordered[-1], *marked])
    margin = max(0.08 * (high - low), 0.002)
    return [max(-0.02, low - 2 * margin), min(1.02, high + margin)]


def hidden_below(plot: Plot, accuracies: Sequence[float]) -> int:
    """How many trials lie under a plot's visible range."""
    return sum(accuracy < plot["layout"]["yaxis"]["range"][0] for accuracy in accuracies)


def prediction_plot(
    true: Sequence[float],
    predicted: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    stopped: Sequence[bool] = (),
) -> Plot:
    """Out-of-fold predictions with their 90 % intervals against the labels learned from, all (n,).

    `stopped` tells whose labels are of a part of the images; empty means none's.
    """
    stopped = stopped or [False] * len(true)
    ends = [min([*true, *predicted]), max([*true, *predicted])]
    margin = max(0.03 * (ends[1] - ends[0]), 0.002)
    ends = [ends[0] - margin, ends[1] + margin]
    trials = []
    for early, name, marker, bar, partly in (
        (True, STOPPED, CROSS, "rgba(180,186,194,0.35)", PARTLY),
        (False, "trial", {"color": OURS, "size": 7}, "rgba(47,125,225,0.35)", ""),
    ):
        rows = [i for i, of in enumerate(stopped) if of == early]
        if not rows:
            continue
        trials.append({
            **_points([true[i] for i in rows], [predicted[i] for i in rows], name),
            "marker": marker,
            "error_y": {
                "type": "data", "symmetric": False, "color": bar, "thickness": 1.4, "width": 0,
                "array": [max(0.0, high[i] - predicted[i]) for i in rows],
                "arrayminus": [max(0.0, predicted[i] - low[i]) for i in rows],
            },
            "customdata": [[low[i], high[i]] for i in rows],
            "hovertemplate": f"measured %{{x:.2%}}{partly}<br>predicted %{{y:.2%}} "
            "(%{customdata[0]:.2%} to %{customdata[1]:.2%})<extra></extra>",
        })  # fmt: skip
    exact = {**_points(ends, ends, "exact"), "mode": "lines", "line": {"color": DENSE, "width": 1.2, "dash": "dot"}}
    layout = _layout(400, x="measured label", y="predicted, trial held out")
    layout["showlegend"] = any(stopped)
    view = _upper_range([value for value, early in zip(true, stopped, strict=True) if not early], [])
    layout["xaxis"] |= {"tickformat": ".0%", "range": view}
    layout["yaxis"] |= {"tickformat": ".0%", "range": view}
    return {"data": [{**exact, "hoverinfo": "skip"}, *trials], "layout": layout}


def keep_plot(names: Sequence[str], kept: Sequence[int], sizes: Sequence[int], uniform: Sequence[int]) -> Plot:
    """What each group keeps of its channels, "removed" where it is none, and what uniform ratios would, all (d,)."""
    labels, width = _labels(names), [k / s for k, s in zip(kept, sizes, strict=True)]
    bars = {
        "type": "bar", "orientation": "h", "name": "released", "y": labels, "x": width, "marker": {"color": OURS},
        "customdata": [list(row) for row in zip(kept, sizes, strict=True)],
        "text": ["" if count else "removed" for count in kept], "textposition": "outside", "cliponaxis": False,
        "hovertemplate": "%{y}<br>%{customdata[0]} of %{customdata[1]} channels (%{x:.0%})<extra></extra>",
    }  # fmt: skip
    ticks = {
        **_points([u / s for u, s in zip(uniform, sizes, strict=True)], labels, "uniform"),
        "marker": {"color": UNIFORM, "symbol": "line-ns", "size": 9, "line": {"color": UNIFORM, "width": 2.5}},
        "customdata": [list(row) for row in zip(uniform, sizes, strict=True)],
        "hovertemplate": "%{y}<br>uniform: %{customdata[0]} of %{customdata[1]} channels (%{x:.0%})<extra></extra>",
    }
    layout = _bar_layout(len(labels), x="share of channels kept")
    layout["xaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    return {"data": [bars, ticks], "layout": layout}


def layers_plot(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> Plot:
    """Multiply-adds of each layer in the dense and in the released network, both (L,)."""
    labels = _labels(names)
    traces = [
        {
            "type": "bar", "orientation": "h", "name": name, "y": labels, "x": list(macs), "width": width,
            "marker": {"color": colour}, "customdata": [[format_macs(value)] for value in macs],
            "hovertemplate": f"%{{y}}<br>{name}: %{{customdata[0]}}<extra></extra>",
        }
        for name, macs, colour, width in (("dense", before, OVER, 0.8), ("released", after, OURS, 0.45))
    ]  # fmt: skip
    layout = _bar_layout(len(labels), x=AXES["macs"])
    layout["xaxis"] |= {"tickformat": "~s"}
    return {"data": traces, "layout": layout | {"barmode": "overlay"}}


def progress_plot(
    accuracies: Sequence[float],
    arms: Sequence[str],
    feasible: Sequence[bool],
    dense: float,
    stopped: Sequence[bool] = (),
) -> Plot:
    """Accuracy by trial, all (n,), coloured by the arm that proposed it; best so far under the caps as a line.

    `stopped` trials, none if empty, are crosses, and never the best.
    """
    stopped = stopped or [False] * len(accuracies)
    traces: list[Plot] = []
    for arm in dict.fromkeys([*(arm for arm in ARMS if arm in arms), *arms]):
        colour, name = ARMS.get(arm, (DENSE, escape(arm)))
        rows = [i for i, of in enumerate(arms) if of == arm]
        traces.append(
            {
                **_points([i + 1 for i in rows], [accuracies[i] for i in rows], name),
                "marker": {
                    "size": 8,
                    "symbol": [CROSS["symbol"] if stopped[i] else "circle" for i in rows],
                    "color": [colour if feasible[i] else "rgba(0,0,0,0)" for i in rows],
                    "line": {"color": colour, "width": 1.6},
                },
                "customdata": [
                    [PARTLY if stopped[i] else "", "under all caps" if feasible[i] else "over a cap"] for i in rows
                ],
                "hovertemplate": f"trial %{{x}}, {name}<br>%{{y:.2%}}%{{customdata[0]}}, %{{customdata[1]}}"
                "<extra></extra>",
            }
        )
    best: list[float | None] = []
    for accuracy, fits, early in zip(accuracies, feasible, stopped, strict=True):
        last = best[-1] if best else None
        best.append(max(accuracy, last or 0.0) if fits and not early else last)
    numbers = list(range(1, len(best) + 1))
    line = {"color": OURS, "width": 2, "shape": "hv"}
    traces.append({**_points(numbers, best, "best under the caps"), "mode": "lines", "line": line, "hoverinfo": "skip"})
    level = {"color": DENSE, "width": 1.2, "dash": "dot"}
    ends = [0, len(best) + 1]
    traces.append({**_points(ends, [dense, dense], "dense"), "mode": "lines", "line": level, "hoverinfo": "skip"})
    layout = _layout(400, x="trial", y="accuracy on the validation split")
    layout["yaxis"] |= {"tickformat": ".0%", "range": _upper_range(accuracies, [dense])}
    layout["xaxis"] |= {"range": ends}
    return {"data": traces, "layout": layout}


def time_plot(seconds: Mapping[str, float]) -> Plot:
    """Wall time of each stage."""
    labels = [STAGES.get(stage, escape(stage)) for stage in seconds]
    bars = {
        "type": "bar", "orientation": "h", "name": "seconds", "y": labels, "x": list(seconds.values()),
        "marker": {"color": OURS}, "text": [seconds_text(value) for value in seconds.values()],
        "textposition": "auto", "cliponaxis": False, "hovertemplate": "%{y}<br>%{text}<extra></extra>",
    }  # fmt: skip
    layout = _bar_layout(len(labels), x="seconds", row=30)
    layout["showlegend"] = False
    return {"data": [bars], "layout": layout}


def _points(x: Sequence[Any], y: Sequence[Any], name: str) -> Plot:
    return {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "name": name}


def _layout(height: int, *, x: str, y: str = "") -> Plot:
    def axis(title: str) -> Plot:
        return {"title": {"text": title, "standoff": 8}, "automargin": True, "zeroline": False}

    return {
        "height": height,
        "margin": {"l": 48, "r": 12, "t": 12, "b": 40},
        "xaxis": axis(x),
        "yaxis": axis(y),
        "legend": {"orientation": "h", "x": 0, "y": 1, "yref": "container", "xanchor": "left", "yanchor": "top"},
        "hovermode": "closest",
    }


def _bar_layout(rows: int, x: str, row: int = ROW) -> Plot:
    layout = _layout(90 + row * max(rows, 3), x=x)
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False, "type": "category", "title": {"text": ""}}
    if rows <= 60:
        layout["yaxis"]["dtick"] = 1
    return layout | {"bargap": 0.25}


def _labels(names: Sequence[str]) -> list[str]:
    """Names as labels: escaped, and long ones cut in the middle; no two alike."""
    short = [name if len(name) <= 34 else f"{name[:14]}…{name[-19:]}" for name in names]
    return [escape(name if short.count(cut) > 1 else cut) for name, cut in zip(names, short, strict=True)]

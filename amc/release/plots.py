"""The plots of a report: numbers in, `plotly.graph_objects.Figure` out.

Text and grid colours are left to the page (templates/base.html.j2), so that one plot serves light, dark and print.
Names from outside are escaped here: plotly reads a little HTML in labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

import plotly.graph_objects as go

from amc.cost.budget import Unit, format_cost, format_macs
from amc.release.comparison import STAGES, seconds_text
from amc.study.pareto import non_dominated

OURS, UNIFORM, DENSE, MEASURED, OVER = "#2f7de1", "#e08a00", "#7a818b", "#7fb0ea", "#b4bac2"
CLEAR = "rgba(0,0,0,0)"
PROPOSERS = {  # colour of what each proposer of the search proposed, and what it is called
    "start": ("#8b929c", "starting set"),
    "improvement": ("#2f7de1", "expected improvement"),
    "posterior_mean": ("#8c6d31", "posterior mean"),
    "posterior_std": ("#b05cc6", "posterior standard deviation"),
    "merit": ("#8c6d31", "posterior mean"),  # as studies of before have it
    "disagreement": ("#b05cc6", "posterior standard deviation"),
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
ACCURACY = "accuracy on the validation split"
ROW = 21  # pixels of a horizontal bar
STOPPED = "trial stopped early"
PARTLY = " of the images seen until it was stopped"
CROSS = {"symbol": "x-thin", "size": 7, "color": OVER, "line": {"color": OVER, "width": 1.4}}
HOLLOW = {"color": CLEAR, "size": 8, "line": {"color": OVER, "width": 1.6}}
STEPS = {"mode": "lines", "line_width": 2, "line_shape": "hv", "hoverinfo": "skip"}
DOTS = {"mode": "lines", "line": {"color": DENSE, "width": 1.2, "dash": "dot"}, "hoverinfo": "skip"}


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
) -> go.Figure:
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
    early = [i for i, of in enumerate(stopped) if of]
    whole = [i for i, of in enumerate(stopped) if not of]
    figure = _figure(460, AXES[unit], ACCURACY)
    if predicted:
        _add_predicted(figure, unit, predicted)
    for rows, name, marker, partly in (
        (early, STOPPED, CROSS, PARTLY),
        ([i for i in whole if not feasible[i]], "trial over a cap", HOLLOW, ""),
        ([i for i in whole if feasible[i]], "trial under all caps" if limit else "trial",
         {"color": MEASURED, "size": 8}, ""),
    ):  # fmt: skip
        if rows:
            figure.add_scatter(
                x=[costs[i] for i in rows], y=[accuracies[i] for i in rows], name=name, mode="markers", marker=marker,
                customdata=[[i + 1, format_cost(unit, costs[i])] for i in rows],
                hovertemplate=f"trial %{{customdata[0]}}<br>%{{y:.2%}}{partly} at %{{customdata[1]}}<extra></extra>",
            )  # fmt: skip
    best = [whole[i] for i in non_dominated([costs[i] for i in whole], [accuracies[i] for i in whole])]
    figure.add_scatter(
        x=[costs[i] for i in best], y=[accuracies[i] for i in best], name="front of the trials",
        line_color=MEASURED, **STEPS,
    )  # fmt: skip
    for mark in marks:
        name, marker = MARKS[mark.kind]
        figure.add_scatter(
            x=[mark.cost], y=[mark.accuracy], name=name, mode="markers", marker=marker,
            hovertemplate=f"{name}<br>%{{y:.2%}} at {format_cost(unit, mark.cost)}<extra></extra>",
        )  # fmt: skip
    shown = [*(mark.accuracy for mark in marks), *([max(p["high"] for p in predicted)] if predicted else [])]
    figure.update_xaxes(tickformat="~s", rangemode="tozero")
    figure.update_yaxes(tickformat=".0%", range=_upper_range([accuracies[i] for i in whole], shown))
    if limit is not None:
        cap = {"text": "cap", "xshift": 4}
        line = {"color": DENSE, "width": 1.5, "dash": "dash"}
        figure.add_vline(limit, line=line, annotation=cap, annotation_position="bottom right")
    return figure


def _add_predicted(figure: go.Figure, unit: Unit, predicted: Sequence[Mapping[str, float]]) -> None:
    costs, means, lows, highs = ([point[key] for point in predicted] for key in ("cost", "mean", "low", "high"))
    figure.add_scatter(
        x=costs + costs[::-1], y=highs + lows[::-1], name="90% interval", mode="lines", line_width=0,
        fill="toself", fillcolor="rgba(47,125,225,0.16)", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=costs, y=means, name="predicted front", mode="lines+markers",
        line={"color": OURS, "width": 2.5}, marker={"color": OURS, "size": 7},
        customdata=[[format_cost(unit, cost), *ends] for cost, *ends in zip(costs, lows, highs, strict=True)],
        hovertemplate="predicted %{y:.2%} (%{customdata[1]:.2%} to %{customdata[2]:.2%})"
        "<br>%{customdata[0]}<extra></extra>",
    )  # fmt: skip


def _upper_range(accuracies: Sequence[float], marked: Sequence[float]) -> list[float]:
    """An axis that holds nine in ten trials and every mark: a few collapsed networks must not flatten the rest."""
    ordered = sorted(accuracies) or [0.0]
    low, high = min([ordered[len(ordered) // 10], *marked]), max([ordered[-1], *marked])
    margin = max(0.08 * (high - low), 0.002)
    return [max(-0.02, low - 2 * margin), min(1.02, high + margin)]


def hidden_below(figure: go.Figure, accuracies: Sequence[float]) -> int:
    """How many trials lie under a plot's visible range."""
    return sum(accuracy < figure.layout.yaxis.range[0] for accuracy in accuracies)


def prediction_plot(
    true: Sequence[float],
    predicted: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    stopped: Sequence[bool] = (),
) -> go.Figure:
    """Out-of-fold predictions with their 90 % intervals against the objective values learned from, all (n,).

    `stopped` tells whose values are of a part of the images; empty means none's.
    """
    stopped = stopped or [False] * len(true)
    ends = [min([*true, *predicted]), max([*true, *predicted])]
    margin = max(0.03 * (ends[1] - ends[0]), 0.002)
    ends = [ends[0] - margin, ends[1] + margin]
    figure = _figure(400, "objective value", "predicted, trial held out")
    figure.add_scatter(x=ends, y=ends, name="exact", **DOTS)
    for early, name, marker, bar, partly in (
        (True, STOPPED, CROSS, "rgba(180,186,194,0.35)", PARTLY),
        (False, "trial", {"color": OURS, "size": 7}, "rgba(47,125,225,0.35)", ""),
    ):
        rows = [i for i, of in enumerate(stopped) if of == early]
        if rows:
            figure.add_scatter(
                x=[true[i] for i in rows], y=[predicted[i] for i in rows], name=name, mode="markers", marker=marker,
                error_y={
                    "symmetric": False, "color": bar, "thickness": 1.4, "width": 0,
                    "array": [max(0.0, high[i] - predicted[i]) for i in rows],
                    "arrayminus": [max(0.0, predicted[i] - low[i]) for i in rows],
                },
                customdata=[[low[i], high[i]] for i in rows],
                hovertemplate=f"measured %{{x:.2%}}{partly}<br>predicted %{{y:.2%}} "
                "(%{customdata[0]:.2%} to %{customdata[1]:.2%})<extra></extra>",
            )  # fmt: skip
    view = _upper_range([value for value, early in zip(true, stopped, strict=True) if not early], [])
    axis = {"tickformat": ".0%", "range": view}
    return figure.update_layout(showlegend=any(stopped), xaxis=axis, yaxis=axis)


def keep_plot(names: Sequence[str], kept: Sequence[int], sizes: Sequence[int], uniform: Sequence[int]) -> go.Figure:
    """What each group keeps of its channels, "removed" where it is none, and what uniform ratios would, all (d,)."""
    labels = _labels(names)

    def shares(counts: Sequence[int], says: str) -> dict[str, object]:
        return {
            "x": [count / size for count, size in zip(counts, sizes, strict=True)], "y": labels,
            "customdata": list(zip(counts, sizes, strict=True)),
            "hovertemplate": f"%{{y}}<br>{says}%{{customdata[0]}} of %{{customdata[1]}} channels "
            "(%{x:.0%})<extra></extra>",
        }  # fmt: skip

    figure = _bars(len(labels), "share of channels kept").add_bar(
        **shares(kept, ""), orientation="h", name="released", marker_color=OURS,
        text=["" if count else "removed" for count in kept], textposition="outside", cliponaxis=False,
    )  # fmt: skip
    marker = {"color": UNIFORM, "symbol": "line-ns", "size": 9, "line": {"color": UNIFORM, "width": 2.5}}
    figure.add_scatter(**shares(uniform, "uniform: "), name="uniform", mode="markers", marker=marker)
    return figure.update_xaxes(tickformat=".0%", range=[0, 1.02])


def layers_plot(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> go.Figure:
    """Multiply-adds of each layer in the dense and in the released network, both (L,)."""
    figure = _bars(len(names), AXES["macs"]).update_layout(barmode="overlay").update_xaxes(tickformat="~s")
    for name, macs, colour, width in (("dense", before, OVER, 0.8), ("released", after, OURS, 0.45)):
        figure.add_bar(
            x=list(macs), y=_labels(names), orientation="h", name=name, width=width, marker_color=colour,
            customdata=[[format_macs(value)] for value in macs],
            hovertemplate=f"%{{y}}<br>{name}: %{{customdata[0]}}<extra></extra>",
        )  # fmt: skip
    return figure


def progress_plot(
    accuracies: Sequence[float],
    proposers: Sequence[str],
    feasible: Sequence[bool],
    dense: float,
    stopped: Sequence[bool] = (),
) -> go.Figure:
    """Accuracy by trial, all (n,), coloured by what proposed it; best so far under the caps as a line.

    `stopped` trials, none if empty, are crosses, and never the best.
    """
    stopped = stopped or [False] * len(accuracies)
    figure = _figure(400, "trial", ACCURACY)
    for proposer in dict.fromkeys([*(known for known in PROPOSERS if known in proposers), *proposers]):
        colour, name = PROPOSERS.get(proposer, (DENSE, escape(proposer)))
        rows = [i for i, of in enumerate(proposers) if of == proposer]
        figure.add_scatter(
            x=[i + 1 for i in rows], y=[accuracies[i] for i in rows], name=name, mode="markers",
            marker={
                "size": 8,
                "symbol": [CROSS["symbol"] if stopped[i] else "circle" for i in rows],
                "color": [colour if feasible[i] else CLEAR for i in rows],
                "line": {"color": colour, "width": 1.6},
            },
            customdata=[
                [PARTLY if stopped[i] else "", "under all caps" if feasible[i] else "over a cap"] for i in rows
            ],
            hovertemplate=f"trial %{{x}}, {name}<br>%{{y:.2%}}%{{customdata[0]}}, %{{customdata[1]}}<extra></extra>",
        )  # fmt: skip
    able = [accuracies[i] if feasible[i] and not early else -1.0 for i, early in enumerate(stopped)]
    best = [None if value < 0 else value for value in accumulate(able, max)]
    ends = [0, len(best) + 1]
    figure.add_scatter(x=list(range(1, ends[1])), y=best, name="best under the caps", line_color=OURS, **STEPS)
    figure.add_scatter(x=ends, y=[dense, dense], name="dense", **DOTS)
    figure.update_yaxes(tickformat=".0%", range=_upper_range(accuracies, [dense]))
    return figure.update_xaxes(range=ends)


def time_plot(seconds: Mapping[str, float]) -> go.Figure:
    """Wall time of each stage."""
    return _bars(len(seconds), "seconds", row=30).update_layout(showlegend=False).add_bar(
        x=list(seconds.values()), y=[STAGES.get(stage, escape(stage)) for stage in seconds], orientation="h",
        name="seconds", marker_color=OURS, text=[seconds_text(value) for value in seconds.values()],
        textposition="auto", cliponaxis=False, hovertemplate="%{y}<br>%{text}<extra></extra>",
    )  # fmt: skip


def _figure(height: int, x: str, y: str = "") -> go.Figure:
    """A figure without traces: titles of the axes, the legend above, no colours of plotly's own template."""
    axis = {"title_standoff": 8, "automargin": True, "zeroline": False}
    return go.Figure().update_layout(
        template=None, height=height, margin={"l": 48, "r": 12, "t": 12, "b": 40}, hovermode="closest",
        xaxis={**axis, "title_text": x}, yaxis={**axis, "title_text": y},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "xanchor": "left", "yanchor": "top"},
    )  # fmt: skip


def _bars(rows: int, x: str, row: int = ROW) -> go.Figure:
    """The same for horizontal bars, the first on top."""
    figure = _figure(90 + row * max(rows, 3), x).update_layout(bargap=0.25)
    return figure.update_yaxes(autorange="reversed", showgrid=False, type="category", dtick=1 if rows <= 60 else None)


def _labels(names: Sequence[str]) -> list[str]:
    """Names as labels: escaped, and long ones cut in the middle; no two alike."""
    short = [name if len(name) <= 34 else f"{name[:14]}…{name[-19:]}" for name in names]
    return [escape(name if short.count(cut) > 1 else cut) for name, cut in zip(names, short, strict=True)]

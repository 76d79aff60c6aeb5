"""What a comparison of objectives found, for people: plain text, Markdown, and a page of plots."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from plotly import graph_objects as go
from plotly.subplots import make_subplots

from amc import write_json, write_text
from amc.bench.html_page import GREY, OURS, UNIFORM, Section, page
from amc.bench.machine import machine
from amc.bench.objectives.fidelity import ENOUGH_FOR_TOP, TOP
from amc.bench.objectives.policies import GOOD
from amc.bench.objectives.trial_kinds import JUDGED
from amc.bench.objectives.verdict import ACCURACY, Finding, long_values, trial_values
from amc.bench.table import MISSING, Table

HEADS = ["trial", "objective", "Kendall", "95 %", "of the good", "top-5 regret", "95 %", "Kendall, accuracy",
         "regret, points", "s a trial"]  # fmt: skip
NOTES = (
    "Kendall: tau-b of the trial's objective with the long fine-tune's; 95 %: its interval over policies drawn anew.",
    f"Of the good: Kendall among the half of the policies that were chosen as good, by the trials {JUDGED}.",
    "Smoothed: accuracy drawn towards its curve over the loss of all policies here, as the search's own objective is.",
    f"Top-5 regret: the best long value of all less the best of the {TOP} policies that the trials put first; "
    f"- of fewer than {ENOUGH_FOR_TOP} policies.",
)
ORIGINS = {"uniform": ("uniform ratios", UNIFORM), "random": ("random", GREY), GOOD: ("chosen as good", OURS)}
UNITS = {"loss": "nats", ACCURACY: "of 1"}
CAPTION = "Trials against long fine-tunes, one panel a kind and objective; bars: a standard deviation over seeds."


def write_report(found: dict[str, Any], out: Path) -> None:
    """Write objectives.json, objectives.md and objectives.html to `out`, each whole or not at all."""
    write_json(out / "objectives.json", {**found, "machine": machine()})
    write_text(out / "objectives.md", objectives_markdown(found))
    sections = [
        Section(f"At most {cap['cap']}", _about(cap), [(CAPTION, scatter(cap))], _table(cap))
        for cap in found["caps"].values()
    ]
    write_text(out / "objectives.html", page(_title(found), _verdict(found), sections, NOTES))


def objectives_text(found: dict[str, Any]) -> str:
    """A table a cap, and the verdict."""
    parts = [_title(found)]
    for cap in found["caps"].values():
        parts += ["", *_about(cap), "", _table(cap).text]
    return "\n".join([*parts, "", *NOTES, "", *_verdict(found), f"Plots: {found['folder']}/objectives.html"])


def objectives_markdown(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    parts = [f"# {_title(found)}", "", *_verdict(found)]
    for cap in found["caps"].values():
        parts += ["", f"## At most {cap['cap']}", "", *_about(cap), "", _table(cap).markdown]
    return "\n".join([*parts, "", *(f"- {note}" for note in NOTES), ""])


def _title(found: dict[str, Any]) -> str:
    return (
        f"{found['recipe']}: trials of {found['policies']} policies a cap against fine-tunes of "
        f"{found['epochs']:g} epochs (dense {found['dense']['accuracy']:.2%}, loss {found['dense']['loss']:.4f})"
    )


def _about(cap: Finding) -> list[str]:
    lines = []
    for metric in sorted(cap["spread"], reverse=True):
        spread, values = cap["spread"][metric], long_values(cap["rows"], metric)
        worst, best = values.min(), values.max()
        span = f"{worst:.2%} to {best:.2%}" if metric == ACCURACY else f"{-worst:.4f} to {-best:.4f} nats"
        noise = f", seed noise {spread['noise']:.5f}" if spread["noise"] is not None else ""
        line = f"At most {cap['cap']}, long {metric}: {span}, spread {spread['std']:.5f}{noise}"
        if ratio := spread["ratio"]:
            line += f", ratio {ratio['value']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f})"
            line += f"; two seeds agree at Kendall {spread['kendall']:.2f}"
        lines.append(f"{line}: {spread['word']}.")
    lines.append(f"A long fine-tune takes {cap['long_seconds']:.0f} s; regret in {UNITS[cap['truth']]}.")
    return lines


def _table(cap: Finding) -> Table:
    rows = []
    for one in cap["objectives"]:
        tau, missed, good = one["kendall"], one["regret"], one["kendall_good"]
        rows.append([
            one["kind"], one["metric"], f"{tau['value']:.2f}", f"{tau['low']:.2f} to {tau['high']:.2f}",
            MISSING if good is None else f"{good:.2f}", f"{missed['value']:.4f}" if missed else MISSING,
            f"{missed['low']:.4f} to {missed['high']:.4f}" if missed else MISSING,
            f"{one['kendall_accuracy']['value']:.2f}",
            f"{100 * one['regret_accuracy']['value']:.2f}" if missed else MISSING, f"{one['seconds']:.3f}",
        ])  # fmt: skip
    return Table(HEADS, rows, texts=2)


def _verdict(found: dict[str, Any]) -> list[str]:
    won = found["winner"]
    if won["reason"]:
        return [f"No winner: {won['reason']}.", f"Rule: {won['rule']}"]
    return [
        f"Winner a second: {won['kind']}, {won['metric']}: mean Kendall {won['kendall']:.2f} at "
        f"{', '.join(won['caps'])}, where the policy matters; {won['seconds']:.3f} s a trial.",
        f"Rule: {won['rule']}",
    ]


def scatter(cap: Finding) -> go.Figure:
    """Trials against long fine-tunes: one panel a kind and objective, a row a kind."""
    rows, truth, panels = cap["rows"], cap["truth"], cap["objectives"]
    kinds, metrics = (list(dict.fromkeys(panel[key] for panel in panels)) for key in ("kind", "metric"))
    long, noise = abs(long_values(rows, truth)), cap["spread"][truth]["noise"] or 0.0
    figure = make_subplots(len(kinds), len(metrics), vertical_spacing=0.35 / len(kinds), horizontal_spacing=0.08)
    for panel in panels:
        row, column = 1 + kinds.index(panel["kind"]), 1 + metrics.index(panel["metric"])
        values = abs(trial_values(rows, panel["kind"])[panel["metric"]])
        for origin, (name, colour) in ORIGINS.items():
            chosen = [index for index, policy in enumerate(rows) if policy["origin"] == origin]
            figure.add_scatter(
                row=row, col=column, x=values[chosen], y=long[chosen], mode="markers", name=name, legendgroup=origin,
                showlegend=row == column == 1, marker={"color": colour, "size": 7},
                error_y={"type": "constant", "value": noise, "thickness": 1, "width": 0, "color": colour},
            )  # fmt: skip
        title = f"{panel['metric']}: Kendall {panel['kendall']['value']:.2f}"
        figure.update_xaxes(title=title, zeroline=False, row=row, col=column)
        side = f"{escape(panel['kind'])}<br>long {truth}" if column == 1 else ""
        figure.update_yaxes(title=side, zeroline=False, row=row, col=column)
    legend = {"orientation": "h", "y": 1.06, "yanchor": "bottom"}
    figure.update_layout(template="none", height=90 + 230 * len(kinds), hovermode="closest", legend=legend)
    return figure

"""What a comparison of labels found, for people: plain text, Markdown, and a page of plots."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from amc.bench.machine import machine
from amc.bench.objectives.fidelity import ENOUGH_FOR_TOP, TOP
from amc.bench.objectives.kinds import JUDGED
from amc.bench.objectives.policies import GOOD
from amc.bench.objectives.verdict import ACCURACY, Finding, cheap_labels, long_labels
from amc.release.comparison import seconds_text
from amc.release.page import render_page
from amc.release.plots import DENSE, OURS, UNIFORM, Plot
from amc.system.files import write_json, write_text

HEADS = ["label", "metric", "Kendall", "95 %", "of the good", "top-5 regret", "95 %", "Kendall, accuracy",
         "regret, points", "s a label"]  # fmt: skip
NOTES = (
    "Kendall: tau-b of the cheap label with the long one; 95 %: its interval over policies drawn anew.",
    f"Of the good: Kendall among the half of the policies that were chosen as good, by the labels {JUDGED}.",
    "Denoised: accuracy drawn towards its curve over the loss of all policies here, as the search's own labels are.",
    "Distance: divergence of the outputs from the dense network's on the validation split, as the task distils.",
    f"Top-5 regret: the best long label of all less the best of the {TOP} policies that the cheap label puts first; "
    f"- of fewer than {ENOUGH_FOR_TOP} policies.",
)
ORIGINS = {"uniform": ("uniform ratios", UNIFORM), "random": ("random", DENSE), GOOD: ("good by cheap labels", OURS)}
UNITS = {"loss": "nats", ACCURACY: "of 1"}


def write_report(found: dict[str, Any], out: Path) -> None:
    """Write labels.json, labels.md and labels.html to `out`, each whole or not at all."""
    write_json(out / "labels.json", {**found, "machine": machine()})
    write_text(out / "labels.md", labels_markdown(found))
    write_text(out / "labels.html", _page(found))


def labels_text(found: dict[str, Any]) -> str:
    """A table a cap, and the verdict."""
    parts = [_title(found)]
    for cap in found["caps"].values():
        rows = [HEADS, *_table(cap)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        parts += ["", *_about(cap), "", *(line.rstrip() for line in lines)]
    return "\n".join([*parts, "", *NOTES, "", *_verdict(found), f"Plots: {found['folder']}/labels.html"])


def labels_markdown(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    parts = [f"# {_title(found)}", "", *_verdict(found)]
    for cap in found["caps"].values():
        parts += ["", f"## At most {cap['cap']}", "", *_about(cap), "", "| " + " | ".join(HEADS) + " |"]
        parts += ["|---|---|" + "---:|" * (len(HEADS) - 2), *("| " + " | ".join(row) + " |" for row in _table(cap))]
    return "\n".join([*parts, "", *(f"- {note}" for note in NOTES), ""])


def _title(found: dict[str, Any]) -> str:
    return (
        f"{found['recipe']}: cheap labels of {found['policies']} policies a cap against fine-tunes of "
        f"{found['epochs']:g} epochs (dense {found['dense']['accuracy']:.2%}, loss {found['dense']['loss']:.4f})"
    )


def _about(cap: Finding) -> list[str]:
    lines = []
    for metric in sorted(cap["spread"], reverse=True):
        spread, labels = cap["spread"][metric], long_labels(cap["rows"], metric)
        worst, best = labels.min(), labels.max()
        span = f"{worst:.2%} to {best:.2%}" if metric == ACCURACY else f"{-worst:.4f} to {-best:.4f} nats"
        noise = f", seed noise {spread['noise']:.5f}" if spread["noise"] is not None else ""
        line = f"At most {cap['cap']}, long {metric}: {span}, spread {spread['std']:.5f}{noise}"
        if ratio := spread["ratio"]:
            line += f", ratio {ratio['value']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f})"
            line += f"; two seeds agree at Kendall {spread['kendall']:.2f}"
        lines.append(f"{line}: {spread['word']}.")
    lines.append(f"A long label takes {seconds_text(cap['long_seconds'])}; regret in {UNITS[cap['truth']]}.")
    return lines


def _table(cap: Finding) -> list[list[str]]:
    rows = []
    for label in cap["labels"]:
        tau, missed, good = label["kendall"], label["regret"], label["kendall_good"]
        rows.append([
            label["kind"], label["metric"], f"{tau['value']:.2f}", f"{tau['low']:.2f} to {tau['high']:.2f}",
            "-" if good is None else f"{good:.2f}", f"{missed['value']:.4f}" if missed else "-",
            f"{missed['low']:.4f} to {missed['high']:.4f}" if missed else "-",
            f"{label['kendall_accuracy']['value']:.2f}",
            f"{100 * label['regret_accuracy']['value']:.2f}" if missed else "-", f"{label['seconds']:.3f}",
        ])  # fmt: skip
    return rows


def _verdict(found: dict[str, Any]) -> list[str]:
    won = found["winner"]
    if won["reason"]:
        return [f"No winner can be told: {won['reason']}.", f"Rule: {won['rule']}"]
    return [
        f"Winner a second: {won['kind']}, {won['metric']}: mean Kendall {won['kendall']:.2f} at "
        f"{', '.join(won['caps'])}, where the policy matters; {won['seconds']:.3f} s a label.",
        f"Rule: {won['rule']}",
    ]


def _page(found: dict[str, Any]) -> str:
    plots, sections = {}, []
    for number, cap in enumerate(found["caps"].values()):
        name = f"cap{number}"
        plots[name] = scatter(cap)
        sections.append({"plot": name, "title": f"At most {cap['cap']}", "about": _about(cap), "table": _table(cap)})
    values = {"title": _title(found), "verdict": _verdict(found), "sections": sections, "heads": HEADS, "notes": NOTES}
    return render_page("labels.html.j2", plots, values)


def scatter(cap: Finding) -> Plot:
    """Cheap against long labels: one panel a kind and metric, a row a kind."""
    rows, truth = cap["rows"], cap["truth"]
    kinds = list(dict.fromkeys(label["kind"] for label in cap["labels"]))
    metrics = list(dict.fromkeys(label["metric"] for label in cap["labels"]))
    long = [float(abs(value)) for value in long_labels(rows, truth)]
    noise = cap["spread"][truth]["noise"] or 0.0
    data: list[Plot] = []
    layout: Plot = {
        "height": 90 + 230 * len(kinds), "margin": {"l": 75, "r": 10, "t": 40, "b": 50}, "annotations": [],
        "grid": {"rows": len(kinds), "columns": len(metrics), "pattern": "independent", "ygap": 0.35, "xgap": 0.22},
        "legend": {"orientation": "h", "y": 1.06, "yanchor": "bottom"}, "hovermode": "closest",
    }  # fmt: skip
    for row, kind in enumerate(kinds):
        for column, (metric, cheap) in enumerate(cheap_labels(rows, kind).items()):
            number = row * len(metrics) + column + 1
            axis = "" if number == 1 else str(number)
            for origin, (name, colour) in ORIGINS.items():
                chosen = [i for i, policy in enumerate(rows) if policy["origin"] == origin]
                data.append({
                    "type": "scatter", "mode": "markers", "name": name, "legendgroup": origin,
                    "showlegend": number == 1, "x": [float(abs(cheap[i])) for i in chosen],
                    "y": [long[i] for i in chosen], "xaxis": f"x{axis}", "yaxis": f"y{axis}",
                    "marker": {"color": colour, "size": 7},
                    "error_y": {"type": "constant", "value": noise, "thickness": 1, "width": 0, "color": colour},
                    "hovertemplate": f"{escape(kind)}, {metric} %{{x:.4f}}<br>long %{{y:.4f}}<extra>{name}</extra>",
                })  # fmt: skip
            tau = next(of["kendall"]["value"] for of in cap["labels"] if (of["kind"], of["metric"]) == (kind, metric))
            title, side = f"{metric}: Kendall {tau:.2f}", f"{escape(kind)}<br>long {truth}" if column == 0 else ""
            layout[f"xaxis{axis}"] = {"title": {"text": title, "standoff": 4}, "zeroline": False}
            layout[f"yaxis{axis}"] = {"title": {"text": side}, "zeroline": False}
    return {"data": data, "layout": layout}

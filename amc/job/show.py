"""What happened in a run, as text for the terminal. Reads the run's files only: no torch, so that it is quick."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from amc.cost.budget import format_bytes, format_cost, format_flops_2x, format_macs, format_params
from amc.job.run_folder import RunFolder
from amc.release import REPORT
from amc.release.comparison import STAGES, comparison_sentences, seconds_text
from amc.release.sentences import certificate_sentence, removed_groups, removed_of, trials_sentence, untested_sentence
from amc.zoo.trust import names_in, trusted

BLOCKS = " ▏▎▍▌▋▊▉█"  # eighths of a cell
COLUMN = 18  # cells of one network's column


@dataclass(frozen=True)
class Terminal:
    """Where the text goes.

    Attributes:
        width: in cells.
        unicode: block elements and signs beyond ASCII can be shown.
        colour: ANSI colours may be used.
    """

    width: int
    unicode: bool
    colour: bool

    @classmethod
    def of_stdout(cls) -> Terminal:
        """What stdout can show; `NO_COLOR` and dumb terminals are honoured."""
        from rich.console import Console  # it knows terminals better than we do

        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
        console = Console(file=sys.stdout)
        colour = console.is_terminal and not console.no_color and console.color_system is not None
        return cls(max(40, shutil.get_terminal_size((100, 24)).columns), encoding.startswith("utf"), colour)


def summary(run: RunFolder, terminal: Terminal | None = None) -> str:
    """What `amc compress` prints at the end: some ten lines."""
    metrics, terminal = run.metrics, terminal or Terminal.of_stdout()
    dense, released, removed = metrics["dense"], metrics["released"], removed_of(metrics)
    share = released["macs"] / dense["macs"]
    arrow = "->" if not terminal.unicode else "→"
    low, high = released["test_interval_95"]
    lines = [
        _title(run),
        f"  MACs      {format_macs(dense['macs'])} {arrow} {format_macs(released['macs'])} ({share:.1%})",
        f"  params    {format_params(dense['params'])} {arrow} {format_params(released['params'])}",
        f"  weights   {format_bytes(dense['bytes'])} {arrow} {format_bytes(released['bytes'])}",
        *([f"  removed   {len(removed)} {'branch' if len(removed) == 1 else 'branches'}"] if removed else []),
        f"  test      {dense['test_accuracy']:.2%} {arrow} {released['test_accuracy']:.2%} "
        f"(95% interval {low:.2%} to {high:.2%})",
        *_paragraph(comparison_sentences(metrics)[-1], terminal, indent=2),
        *(_paragraph(f"{untested}.", terminal, indent=2) if (untested := untested_sentence(metrics)) else []),
        *([metrics["predictor"]["warning"]] if metrics["predictor"]["warning"] else []),
        f"  report    {run.folder / REPORT}",
        f"  next      {_next(run)}",
    ]
    return _finished(lines, terminal, bold=1)


def _next(run: RunFolder) -> str:
    """What may be done with a run, as it must be typed."""
    recipe, folder = run.recipe, run.folder
    names = names_in(recipe.model, recipe.data, recipe.task)
    if any(name.startswith("object:") for name in names):
        return f"amc show {folder}   |   in Python: amc.open_run({str(folder)!r}, model=..., train=..., validation=...)"
    own = ",".join(dict.fromkeys(name.partition(":")[0] for name in names if not trusted(name, own_environment=False)))
    trust = f" --trust {own}" if own else ""
    return f"amc show {folder}   |   amc retarget {folder} --budget 40%{trust}   |   amc front {folder}{trust}"


def details(run: RunFolder, terminal: Terminal | None = None) -> str:
    """What `amc show` prints: what was chosen, how sure, and how it was found."""
    metrics, terminal = run.metrics, terminal or Terminal.of_stdout()
    lines = [_title(run), "", *_networks(metrics), "", _head("Caps", terminal)]
    for cap in metrics["budgets"]:
        used, limit = (format_cost(cap["unit"], cap[key]) for key in ("used", "limit"))
        lines.append(f"  {cap['budget']:<12} {used} of {limit} used ({cap['used'] / cap['limit']:.1%})")
    lines += ["", _head("Channels kept", terminal), *_groups(run.policy, run.sizes, terminal)]
    if removed := removed_groups(run.policy):
        lines += _paragraph(f"Branches removed: {', '.join(removed)}", terminal, indent=2)
    lines += ["", _head("Against uniform ratios", terminal)]
    untested = untested_sentence(metrics)
    for sentence in [*comparison_sentences(metrics), *([f"{untested}."] if untested else [])]:
        lines += _paragraph(sentence, terminal, indent=2)
    quality = metrics["predictor"]
    lines += [
        "",
        _head("Predictor, cross-validated", terminal),
        *_paragraph(
            f"Kendall {quality['kendall']:.2f}, Spearman {quality['spearman']:.2f}, root mean squared error "
            f"{100 * quality['rmse']:.2f} points; the 90% intervals hold {quality['coverage_90']:.0%} of the trials",
            terminal,
            indent=2,
        ),
        *(_paragraph(quality["warning"], terminal, indent=2) if quality["warning"] else []),
        *_paragraph(certificate_sentence(metrics), terminal, indent=2),
        "",
        _head(f"Time: {seconds_text(metrics['seconds'])}", terminal),
        *_stages(metrics["stage_seconds"], terminal),
        f"  {trials_sentence(metrics)}, {metrics['failed_trials']} failed{_steps(run)}",
        "",
        f"{run.folder / REPORT} has the plots; `amc front {run.folder}` the best policies over a range of caps",
    ]
    return _finished(lines, terminal, bold=1)


def _steps(run: RunFolder) -> str:
    steps = run.recipe.recovery.steps
    return f"; each after {steps} step{'s' if steps > 1 else ''} of training" if steps else ""


def _title(run: RunFolder) -> str:
    metrics = run.metrics
    budgets = " and ".join(cap["budget"] for cap in metrics["budgets"])
    return f"{metrics['recipe']}: {metrics['model']} on {metrics['data']}, at most {budgets}"


def _networks(metrics: dict[str, Any]) -> list[str]:
    names = ("dense", "released", "uniform")
    networks = [metrics[name] for name in names]

    def row(label: str, cells: list[str]) -> str:
        return f"{label:<20}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)

    def shares(key: str) -> list[str]:
        return [f"{network[key]:.2%}" if key in network else "-" for network in networks]

    untuned = metrics["comparison"]["after_finetune"] is None
    metric = metrics.get("metric", "accuracy")
    lines = [
        row("", list(names)),
        row("MACs", [format_macs(network["macs"]) for network in networks]),
        row("  of the dense", [f"{network['macs'] / networks[0]['macs']:.1%}" for network in networks]),
        row("  2 per MAC", [format_flops_2x(network["macs"]) for network in networks]),
        row("params", [format_params(network["params"]) for network in networks]),
        row("weights", [format_bytes(network["bytes"]) for network in networks]),
        row(f"validation {metric}", shares("measure_accuracy")),
        row("  before fine-tune", shares("measure_accuracy_before_finetune")),
        row(f"test {metric}", shares("test_accuracy")),
        row("  95% interval", ["{:.1%} - {:.1%}".format(*network["test_interval_95"]) for network in networks]),
        row("  before fine-tune", shares("test_accuracy_before_finetune")),
    ]
    if networks[0].get("test_loss"):  # runs of before have none
        losses = [network["test_loss"] for network in networks]
        lines.append(row("test loss, nats", [f"{loss:.4f}" for loss in losses]))
        lines.append(row("  in bits", [f"{loss / math.log(2):.4f}" for loss in losses]))
    return [*lines, "(the uniform baseline was not fine-tuned)"] if untuned else lines


def _groups(kept: dict[str, int], sizes: dict[str, int], terminal: Terminal) -> list[str]:
    """A bar a group; numbers alone where the run did not keep the sizes."""
    digits = max((len(str(count)) for count in [*kept.values(), *sizes.values()]), default=1)
    tail = 2 * digits + (12 if all(kept.values()) else 15)  # " 12 of 16  75%", "  0 of 16 removed"
    label = min(max(map(len, kept), default=0), max(12, terminal.width // 3))
    cells = max(8, min(50, terminal.width - label - tail - 3))
    lines = []
    for name, count in kept.items():
        size, shown = sizes.get(name), _short(name, label, terminal)
        if size:
            share = f"{count / size:>4.0%}" if count else "removed"
            bar = _bar(count / size, cells, terminal)
            lines.append(f"  {shown:<{label}} {bar} {count:>{digits}} of {size:>{digits}} {share}")
        else:
            lines.append(f"  {shown:<{label}} {count:>{digits}}{'' if count else ' removed'}")
    return lines


def _stages(seconds: dict[str, float], terminal: Terminal) -> list[str]:
    longest, label = max([*seconds.values(), 1e-9]), max(len(STAGES.get(stage, stage)) for stage in seconds)
    cells = max(4, min(30, terminal.width - label - 16))
    rows = []
    for stage, spent in seconds.items():
        bar = _bar(spent / longest, cells, terminal).rstrip(" .")
        rows.append(f"  {STAGES.get(stage, stage):<{label}} {seconds_text(spent):>12} {bar}".rstrip())
    return rows


def _bar(share: float, cells: int, terminal: Terminal) -> str:
    """A bar of `share` of so many cells, padded to all of them; with blocks, to an eighth of a cell."""
    share = min(1.0, max(0.0, share))
    if not terminal.unicode:
        return ("#" * round(share * cells)).ljust(cells, ".")
    whole, rest = divmod(round(share * cells * 8), 8)
    return (BLOCKS[8] * whole + (BLOCKS[rest] if rest else "")).ljust(cells)


def _short(name: str, width: int, terminal: Terminal) -> str:
    """The end of a name tells layers apart: the front is cut."""
    mark = "…" if terminal.unicode else "~"
    return name if len(name) <= width else mark + name[len(name) - width + 1 :]


def _paragraph(text: str, terminal: Terminal, indent: int) -> list[str]:
    margin = " " * indent
    return wrap(text, min(terminal.width, 100), initial_indent=margin, subsequent_indent=margin)


def _head(text: str, terminal: Terminal) -> str:
    return f"\x1b[1m{text}\x1b[0m" if terminal.colour else text


def _finished(lines: list[str], terminal: Terminal, bold: int) -> str:
    """The lines as one text; beyond ASCII only where the terminal can show it."""
    text = "\n".join([*(_head(line, terminal) for line in lines[:bold]), *lines[bold:]])
    return text if terminal.unicode else text.replace("−", "-").replace("→", "->").encode("ascii", "replace").decode()

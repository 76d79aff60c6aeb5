"""`report.html`: what was chosen, from what, how sure, and how it was found, on one page that needs no network."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray

from amc.cost.budget import Unit, format_bytes, format_cost, format_flops_2x, format_macs, format_params
from amc.cost.counts import macs_by_module
from amc.cost.trace import Trace
from amc.release import plots
from amc.release.comparison import comparison_sentences, seconds_text
from amc.release.page import render_page
from amc.release.plots import Mark
from amc.release.report_inputs import ReportInputs
from amc.release.sentences import certificate_sentence, removed_of, trials_sentence, untested_sentence
from amc.zoo.trust import trusted
from amc_search import Cap, is_feasible, uniform

NO_BREAK = "\u00a0"
NETWORKS = ("dense", "released", "uniform")
PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):[^/\s]*@")


def report(inputs: ReportInputs) -> str:
    """The whole page."""
    metrics, data, study, predictor = inputs.metrics, inputs.data, inputs.study, inputs.fit.predictor
    accuracies = [trial.accuracy for trial in study.trials]
    drawn = _plots(inputs)
    values = {
        **_headline(metrics),
        "cards": _cards(metrics),
        "comparison": comparison_sentences(metrics),
        "warning": metrics["predictor"]["warning"],
        "certificate": certificate_sentence(metrics),
        "tuned": metrics["comparison"]["after_finetune"] is not None,
        "rows": network_rows(metrics),
        "caps": cap_rows(metrics),
        "validation_images": len(data.validation),
        "test_images": len(data.test),
        "untested": untested_sentence(metrics),
        "below": plots.hidden_below(drawn["front"], accuracies),
        "below_predicted": plots.hidden_below(drawn["prediction"], predictor.ranks.accuracy.tolist()),
        "ranks": {
            "kendall": f"{predictor.ranks.kendall:.2f}",
            "spearman": f"{predictor.ranks.spearman:.2f}",
            "rmse": f"{100 * predictor.ranks.rmse:.2f} points",
            "coverage": f"{predictor.ranks.coverage_90:.0%}",
        },
        "frozen": inputs.measure.trace.frozen,
        "seconds": seconds_text(metrics["seconds"]),
        "trials": trials_sentence(metrics),
        "stopped": metrics.get("stopped", 0),
        "removed": removed_of(metrics),
        "failures": Counter(study.failures).most_common(),
        "snippet": load_snippet(inputs),
        "preprocessing": preprocessing(inputs),
        "recipe": PASSWORD.sub(r"\1:***@", inputs.recipe),
        "protocol": metrics["protocol"],
    }
    return render_page("report.html.j2", drawn, values)


def _headline(metrics: dict[str, Any]) -> dict[str, str]:
    share = metrics["released"]["macs"] / metrics["dense"]["macs"]
    budgets = " and ".join(budget["budget"] for budget in metrics["budgets"])
    return {
        "title": f"{metrics['model']} at {share:.1%} of its multiply-adds",
        "subtitle": f"Recipe {metrics['recipe']}, data {metrics['data']}, asked for at most {budgets}.",
    }


def _cards(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    dense, released, uniform_ = (metrics[name] for name in NETWORKS)
    cards = []
    for name, key, write in (
        ("Multiply-adds", "macs", format_macs),
        ("Parameters", "params", format_params),
        ("Weights", "bytes", format_bytes),
    ):
        texts = (write(network[key]) for network in (dense, released))
        before, after = _shortened(*(text.replace(" ", NO_BREAK) for text in texts))
        notes = [f"{released[key] / dense[key] - 1:+.1%}".replace("-", "−") + f"; uniform {write(uniform_[key])}"]
        if key == "macs":
            twice = _shortened(*(format_flops_2x(n[key]).replace(" ", NO_BREAK, 1) for n in (dense, released)))
            notes.append(" → ".join(twice))
        cards.append({"name": name, "before": before, "after": after, "notes": notes})
    low, high = released["test_interval_95"]
    accuracy = {
        "name": f"Test {metrics.get('metric', 'accuracy')}",
        "before": f"{dense['test_accuracy']:.2%}",
        "after": f"{released['test_accuracy']:.2%}",
        "notes": [f"95% interval {low:.2%} to {high:.2%}", f"uniform {uniform_['test_accuracy']:.2%}"],
    }
    return [*cards, accuracy]


def _shortened(before: str, after: str) -> tuple[str, str]:
    """`31.02 MMACs`, `15.11 MMACs` -> `31.02`, `15.11 MMACs`: a unit that both share is said once."""
    number, _, unit = before.partition(NO_BREAK)
    return (number if unit == after.partition(NO_BREAK)[2] else before), after


def network_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of the networks compared: name, sub (a detail of the row above), and one text a network."""
    tuned = metrics["comparison"]["after_finetune"] is not None

    def row(name: str, texts: list[str], sub: bool = False) -> dict[str, Any]:
        return {"name": name, "sub": sub, **dict(zip(NETWORKS, texts, strict=True))}

    networks = [metrics[name] for name in NETWORKS]
    rows = [
        row("Multiply-adds (MACs)", [format_macs(n["macs"]) for n in networks]),
        row("of the dense network's", [f"{n['macs'] / networks[0]['macs']:.1%}" for n in networks], sub=True),
        row("FLOPs, 2 per multiply-add", [format_flops_2x(n["macs"]) for n in networks], sub=True),
        row("Parameters", [format_params(n["params"]) for n in networks]),
        row("Bytes of weights", [format_bytes(n["bytes"]) for n in networks]),
    ]
    if "activation_bytes" in networks[1]:
        peaks = [
            format_cost("activation_bytes", n["activation_bytes"]) if "activation_bytes" in n else "–" for n in networks
        ]
        rows.append(row("Peak activation bytes", peaks))
    for split, key in (("validation", "measure_accuracy"), ("test", "test_accuracy")):
        texts = [f"{n[key]:.2%}" for n in networks]
        if not tuned:
            texts[2] += " (not fine-tuned)"
        rows.append(row(f"{metrics.get('metric', 'accuracy').capitalize()}, {split} split", texts))
        if split == "test":
            intervals = ["{:.2%} to {:.2%}".format(*n["test_interval_95"]) for n in networks]
            rows.append(row("95% interval", intervals, sub=True))
        before = [f"{n[f'{key}_before_finetune']:.2%}" for n in networks[1:]]
        rows.append(row("before fine-tuning", ["–", *before], sub=True))
    if networks[0].get("test_loss"):
        losses = [n["test_loss"] for n in networks]
        rows.append(row("Cross-entropy, test split, nats", [f"{loss:.4f}" for loss in losses]))
        rows.append(row("in bits", [f"{loss / math.log(2):.4f}" for loss in losses], sub=True))
    return rows


def cap_rows(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Each budget, its limit, and what of it is used."""
    return [
        {
            "budget": cap["budget"],
            "limit": format_cost(cap["unit"], cap["limit"]),
            "used": format_cost(cap["unit"], cap["used"]),
            "share": f"{cap['used'] / cap['limit']:.1%}",
        }
        for cap in metrics["budgets"]
    ]


def _plots(inputs: ReportInputs) -> dict[str, go.Figure]:
    metrics, study, ranks = inputs.metrics, inputs.study, inputs.fit.predictor.ranks
    trace, trials = inputs.measure.trace, study.trials
    space = trace.space
    caps = tuple(Cap(trace.cost(cap["unit"]), cap["limit"]) for cap in metrics["budgets"])
    policy = np.array([inputs.policy[name] for name in space.names], dtype=np.int64)
    policies = np.array([trial.policy for trial in trials], dtype=np.int64)
    accuracies, stopped = [trial.accuracy for trial in trials], [trial.stopped for trial in trials]
    feasible = is_feasible(policies, caps).tolist()
    tightest = max(metrics["budgets"], key=lambda cap: cap["used"] / cap["limit"])
    unit: Unit = tightest["unit"]
    plain = uniform(space, caps)
    partial = [*(trial.stopped for trial in inputs.fit.trials), False]  # the dense network was the last example

    def cost(counts: NDArray[np.int64]) -> list[float]:
        found: list[float] = trace.cost(unit)(torch.from_numpy(np.atleast_2d(counts)).double()).tolist()
        return found

    marks = marks_of(metrics, cost(space.high)[0], cost(policy)[0], cost(plain)[0])
    names, before, after = _macs_by_layer(trace, policy)
    return {
        "front": plots.front_plot(
            unit, cost(policies), accuracies, feasible, marks, tightest["limit"], stopped=stopped
        ),
        "prediction": plots.prediction_plot(
            ranks.accuracy.tolist(), ranks.mean.tolist(), ranks.low.tolist(), ranks.high.tolist(), partial
        ),
        "keep": plots.keep_plot(space.names, policy.tolist(), space.sizes, plain.tolist()),
        "layers": plots.layers_plot(names, before, after),
        "progress": plots.progress_plot(
            accuracies, study.proposers, feasible, metrics["dense"]["measure_accuracy"], stopped
        ),
        "time": plots.time_plot(metrics["stage_seconds"]),
    }


def marks_of(metrics: dict[str, Any], dense: float, released: float, plain: float) -> list[Mark]:
    """The networks that stand out in a front, given what each costs in its unit."""
    marks = [
        Mark(dense, metrics["dense"]["measure_accuracy"], "dense"),
        Mark(plain, metrics["uniform"]["measure_accuracy_before_finetune"], "uniform"),
        Mark(released, metrics["released"]["measure_accuracy_before_finetune"], "released"),
    ]
    if metrics["released"]["measure_accuracy"] != metrics["released"]["measure_accuracy_before_finetune"]:
        marks.append(Mark(released, metrics["released"]["measure_accuracy"], "finetuned"))
    return marks


def _macs_by_layer(trace: Trace, policy: NDArray[np.int64]) -> tuple[list[str], list[float], list[float]]:
    """Layer names, and the multiply-adds of each before and after."""
    both = macs_by_module(trace.table, torch.from_numpy(np.stack([trace.space.high, policy])).double())
    before, after = torch.stack(list(both.values()), dim=1).tolist()
    return [name or "the network itself" for name in both], before, after


def load_snippet(inputs: ReportInputs) -> str:
    """Python that has the released network back."""
    shape = ", ".join(str(size) for size in _lone_shape(inputs))
    use = (
        f"outputs = model(torch.zeros({shape}))" if shape else "outputs = model(...)  # called as the dense network is"
    )
    if inputs.measure.task.metric is None:
        use = use.replace("outputs", "logits", 1)
    return (
        "import amc, torch\n\n"
        f'model = amc.load("."{_loading(inputs)})  # the folder that holds model.safetensors and architecture.json\n'
        f"{use}"
    )


def _loading(inputs: ReportInputs) -> str:
    """What `amc.load` needs beside the folder: whoever loads names the code that is not ours."""
    name = inputs.metrics["model"]
    if name.startswith("object:"):
        return ", model=make"
    return "" if trusted(name, own_environment=False) else f', trust="{name}"'


def _lone_shape(inputs: ReportInputs) -> tuple[int, ...]:
    """The shape of the network's input for one example; () where it takes more than one tensor."""
    example = inputs.measure.trace.example
    args = example.args
    lone = len(args) == 1 and not example.kwargs and isinstance(args[0], torch.Tensor)
    return tuple(args[0].shape) if lone else ()


def preprocessing(inputs: ReportInputs) -> str:
    """What inputs must be before the network sees them, in one or two sentences."""
    shape = _lone_shape(inputs)[1:]
    if not shape:
        return "Inputs are those of the dense network, prepared as the training data was."
    mean, std = (getattr(inputs.data.validation, name, None) for name in ("mean", "std"))
    size = f"Inputs are float tensors (batch, {', '.join(map(str, shape))})"
    if not (mean and std):
        return f"{size}, normalised as the training data was."
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    scaled = "pixels scaled to 0..1, then " if len(shape) == 3 else ""
    return f"{size}: {scaled}normalised per channel with mean ({means}) and deviation ({stds})."

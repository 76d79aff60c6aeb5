"""`README.md` of a release: the model card, for whoever is handed the network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from amc.release.archive import RECORD, WEIGHTS
from amc.release.comparison import comparison_sentences
from amc.release.evidence import Evidence
from amc.release.report import NETWORKS, cap_rows, load_snippet, network_rows, preprocessing
from amc.release.sentences import certificate_sentence, removed_of


def model_card(folder: Path, evidence: Evidence) -> str:
    """The card of the release in `folder`, as Markdown with Hugging Face's front matter."""
    metrics = evidence.metrics
    model, data = _code(metrics["model"]), _code(metrics["data"])
    share = metrics["released"]["macs"] / metrics["dense"]["macs"]
    sections = [
        _front_matter(evidence),
        f"# {_plain(metrics['model'])}, cut to {share:.1%} of its multiply-adds",
        f"{_kind(evidence)}: {model} with channels removed by AMC and {_training(evidence)}. "
        f"It was made from {_origin(evidence)} on the data {data}.{_branches(metrics)}",
        _table("Cost of one image", metrics, slice(0, -5)),
        _caps(metrics),
        _table(_measured_by(evidence), metrics, slice(-5, None)),
        "\n".join(f"- {sentence}" for sentence in comparison_sentences(metrics)),
        "## Use",
        f"```python\n{load_snippet(evidence)}\n```",
        f"{preprocessing(evidence)} {_outputs(evidence)} Loading needs PyTorch and AMC, and reads no pickle.",
        "## How it was made",
        _made(evidence),
        "## Intended use and limits",
        _limits(evidence),
        "## Licence",
        f"The network inherits the licence of the dense network it was cut from ({model}), and may be bound by that of "
        f"its training data; AMC adds no terms of its own. Check both before you pass it on.",
        "## Files",
        _files(folder),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(evidence: Evidence) -> str:
    """Only what is true of every release; the hub's ids of base model, data and licence are not known here."""
    kind = "pipeline_tag: image-classification\n" if _classifies_images(evidence) else ""
    return f"---\n{kind}tags:\n- amc\n- pruning\n- model-compression\n---"


def _classifies_images(evidence: Evidence) -> bool:
    return evidence.measure.task.metric is None and len(evidence.data.input_shape) == 3


def _kind(evidence: Evidence) -> str:
    if evidence.measure.task.metric is not None:
        return "A network"
    kind = "An image" if _classifies_images(evidence) else "A"
    return f"{kind} classification network ({evidence.data.num_classes} classes)"


def _measured_by(evidence: Evidence) -> str:
    task = evidence.measure.task
    return (
        "Accuracy (top 1)" if task.metric is None else f"{task.metric_name.capitalize()} ({_code(task.names[1])}, mean)"
    )


def _outputs(evidence: Evidence) -> str:
    classifies = evidence.measure.task.metric is None
    return "The outputs are logits, one a class." if classifies else "The outputs are the dense network's."


def _training(evidence: Evidence) -> str:
    epochs = evidence.measure.settings.schedule.epochs
    return (
        f"fine-tuned for {epochs:g} epochs, with the dense network as teacher" if epochs else "not trained afterwards"
    )


def _branches(metrics: dict[str, Any]) -> str:
    """Which branches the network lacks, where it lacks some."""
    names = ", ".join(map(_code, removed_of(metrics)))
    return f" Whole branches were removed, named by their first layer: {names}." if names else ""


def _origin(evidence: Evidence) -> str:
    """Where the dense weights came from; of a file only the name, since a card is passed on."""
    weights = evidence.metrics["weights"]
    digest = f"weights digest {_code(evidence.measure.trace.digest)}"
    named = {"default": "the default weights", "none": "random weights"}
    return f"{named.get(weights) or 'the weights ' + _code(Path(weights).name)} ({digest})"


def _table(title: str, metrics: dict[str, Any], part: slice) -> str:
    lines = [f"## {title}", "", "| | dense | this network | uniform ratios |", "|---|---:|---:|---:|"]
    for row in network_rows(metrics)[part]:
        name = f"&nbsp;&nbsp;{row['name']}" if row["sub"] else row["name"]
        lines.append(f"| {name} | " + " | ".join(row[network] for network in NETWORKS) + " |")
    return "\n".join(lines)


def _caps(metrics: dict[str, Any]) -> str:
    return "\n".join(
        f"- Cap {_code(cap['budget'])}: {cap['used']} of {cap['limit']} used ({cap['share']})."
        for cap in cap_rows(metrics)
    )


def _made(evidence: Evidence) -> str:
    metrics = evidence.metrics
    trials, stopped, protocol = metrics["trials"], metrics.get("stopped", 0), evidence.measure.protocol()
    early = f" ({stopped} of them stopped early, once it was sure that they could not matter)" if stopped else ""
    return (
        f"AMC measured {trials} policies on {protocol.measure_images:,} images{early}, learnt a predictor of "
        f"accuracy from them (Kendall {metrics['predictor']['kendall']:.2f}, cross-validated), climbed it under the "
        "cap, measured the best few and kept the best. “Uniform ratios” keeps the same share of every group under the "
        "same cap, with the same recovery and, where it is shown, the same fine-tuning.\n\n"
        "```sh\n"
        "amc compress --recipe recipe.toml --out runs/again  # the same settings; recipe.toml stands beside this card\n"
        "amc verify . --max-drop 1.0%                        # measures this network anew\n"
        "```\n\n"
        f"{_certificate(metrics)}"
        f"Computed on {protocol.compute}, {', '.join(protocol.versions)}, seed {protocol.seed}, protocol "
        f"{_code(metrics['protocol'])}."
    )


def _certificate(metrics: dict[str, Any]) -> str:
    sentence = certificate_sentence(metrics)
    return f"{sentence}.\n\n" if sentence else ""


def _limits(evidence: Evidence) -> str:
    data, hardware, metrics = evidence.data, evidence.measure.compute.name, evidence.metrics
    limits = [
        "For images like those it was trained on; nothing is known of other data, of robustness, or of fairness "
        "across groups. Removing channels can hurt rare classes more than the mean accuracy shows.",
        f"Data: {len(data.train):,} images to train, {len(data.validation):,} to choose the policy, "
        f"{len(data.test):,} to test, looked at once. The intervals tell the chance in the test images, "
        "not that in the training.",
        f"One seed ({evidence.measure.seed}): another seed may choose another policy and give another accuracy.",
        "Cost is counted (multiply-adds, parameters, bytes), not timed: latency on a device was not measured.",
    ]
    if hardware.startswith("cpu"):
        limits.append("Made and measured on a CPU; it has run on no GPU.")
    if metrics["predictor"]["warning"]:
        limits.append(_plain(metrics["predictor"]["warning"]).removeprefix("warning: ").capitalize() + ".")
    return "\n".join(f"- {limit}" for limit in limits)


def _files(folder: Path) -> str:
    weights = (folder / WEIGHTS).read_bytes()
    return "\n".join(
        [
            "| file | bytes | SHA-256 |",
            "|---|---:|---|",
            f"| `{WEIGHTS}` | {len(weights):,} | `{hashlib.sha256(weights).hexdigest()}` |",
            f"| `{RECORD}` | {(folder / RECORD).stat().st_size:,} | `{_digest(folder / RECORD)}` |",
        ]
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _code(text: str) -> str:
    """Any text as inline code: no Markdown, no HTML, no end of the table cell."""
    safe = " ".join(str(text).split()).replace("`", "'").replace("|", "¦")
    return f"`{safe}`"


def _plain(text: str) -> str:
    """Any text as words: what Markdown or HTML would read is escaped."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|#~!" else letter for letter in " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

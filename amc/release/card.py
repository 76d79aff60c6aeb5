"""`README.md` of a release: the model card, for whoever is handed the network. Its text is `templates/card.md.j2`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from amc.release.archive import RECORD, WEIGHTS
from amc.release.comparison import comparison_sentences
from amc.release.report import cap_rows, load_snippet, network_rows, preprocessing
from amc.release.report_inputs import ReportInputs
from amc.release.sentences import certificate_sentence, removed_of, untested_sentence


def model_card(folder: Path, inputs: ReportInputs) -> str:
    """The card of the release in `folder`, as Markdown with Hugging Face's front matter.

    The front matter holds only what is true of every release: the hub's ids of base model, data and licence are not
    known here.
    """
    metrics, data, task = inputs.metrics, inputs.data, inputs.measure.task
    is_classifier = task.metric is None
    text: str = _template().render(
        model=metrics["model"],
        data=metrics["data"],
        share=f"{metrics['released']['macs'] / metrics['dense']['macs']:.1%}",
        is_classifier=is_classifier,
        classes=data.num_classes,
        classifies_images=is_classifier and len(data.input_shape) == 3,
        from_objects=metrics["model"].startswith("object:"),
        metric=task.metric_name,
        metric_function=task.names[1],
        epochs=inputs.measure.settings.schedule.epochs,
        origin=_origin(metrics["weights"]),
        digest=inputs.measure.trace.digest,
        removed=removed_of(metrics),
        rows=network_rows(metrics),
        caps=cap_rows(metrics),
        comparison=comparison_sentences(metrics),
        snippet=load_snippet(inputs),
        preprocessing=preprocessing(inputs),
        trials=metrics["trials"],
        stopped=metrics.get("stopped", 0),
        kendall=metrics["predictor"]["kendall"],
        warning=metrics["predictor"]["warning"],
        untested=untested_sentence(metrics),
        certificate=certificate_sentence(metrics),
        protocol=inputs.measure.protocol(),
        protocol_digest=metrics["protocol"],
        sizes={"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        files=[_file(folder / name) for name in (WEIGHTS, RECORD)],
    )
    return text.rstrip() + "\n"


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"code": _code, "plain": _plain}
    return environment.get_template("card.md.j2")


def _origin(weights: str) -> str:
    """Where the dense weights came from; of a file only the name, since a card is passed on."""
    named = {"default": "the default weights", "none": "random weights"}
    if weights.startswith("digest:"):
        return "the weights it was handed over with"
    return named.get(weights) or f"the weights {_code(Path(weights).name)}"


def _file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _code(text: str) -> str:
    """Any text as inline code: no Markdown, no HTML, no end of the table cell."""
    safe = " ".join(str(text).split()).replace("`", "'").replace("|", "¦")
    return f"`{safe}`"


def _plain(text: str) -> str:
    """Any text as words: what Markdown or HTML would read is escaped."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|#~!" else letter for letter in " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""The comparison with uniform ratios in words that claim no more than its interval supports."""

from __future__ import annotations

from typing import Any

WHEN = {"before_finetune": "Before fine-tuning", "after_finetune": "After fine-tuning"}


def comparison_sentences(metrics: dict[str, Any]) -> list[str]:
    """One sentence before and one after fine-tuning, from `metrics.json`."""
    return [comparison_sentence(WHEN[key], metrics["comparison"][key]) for key in WHEN]


def comparison_sentence(when: str, pair: dict[str, float] | None) -> str:
    """`pair`: released minus uniform in 0..1, {difference, low, high} (95 %, same images); None: not measured."""
    if pair is None:
        return f"{when}: not compared, since the uniform baseline was not fine-tuned."
    difference, low, high = (pair[key] for key in ("difference", "low", "high"))
    if low == high == 0:
        return f"{when}, the released network and uniform ratios are right on exactly the same test images."
    figures = f"95% interval {points(low)} to {points(high)}"
    if low > 0:
        verdict = f"is better than uniform ratios by {100 * difference:.2f} points"
    elif high < 0:
        verdict = f"is worse than uniform ratios by {-100 * difference:.2f} points"
    else:
        return (
            f"{when}, the test images do not tell the released network from uniform ratios: "
            f"the difference is {points(difference)} points ({figures})."
        )
    return f"{when}, the released network {verdict} on the test images ({figures})."


def points(share: float) -> str:
    """A difference of accuracies in points, with its sign: 0.012 -> +1.20."""
    text = f"{100 * share:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def seconds_text(seconds: float) -> str:
    """Time for people: 4.2 s, 3 min 43 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


STAGES = {
    "prepare": "trace, rank, moments",
    "search": "measure policies",
    "select": "fit predictor, ascend, measure the best",
    "finetune": "fine-tune the release",
    "finetune_uniform": "fine-tune the uniform baseline",
    "test": "test split, once",
    "release": "write the release",
}

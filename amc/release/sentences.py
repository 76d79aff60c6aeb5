"""What `metrics.json` says of trials, removed branches and the certificate, in words for terminal, report and card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def removed_groups(policy: Mapping[str, int]) -> list[str]:
    """The groups of a policy that keep no channel: the branches they stand in are gone."""
    return [name for name, kept in policy.items() if kept == 0]


def removed_of(metrics: Mapping[str, Any]) -> list[str]:
    """The same of the released network; none in runs that were made before groups could be removed."""
    names: list[str] = metrics["released"].get("removed", [])
    return names


def untested_sentence(metrics: Mapping[str, Any]) -> str:
    """Where there was no test split, what that makes of the test figures; else ""."""
    if metrics.get("tested_on", "test") == "test":
        return ""
    return (
        "No test split was given: every test figure is of the validation split, on which the policy was chosen, and so "
        "too good"
    )


def trials_sentence(metrics: Mapping[str, Any]) -> str:
    """How many trials were measured, and how many of them not to the end: `163 trials measured, 22 of them ...`."""
    stopped = metrics.get("stopped", 0)
    measured = f"{metrics['trials']} trials measured"
    return f"{measured}, {stopped} of them stopped early" if stopped else measured


def certificate_sentence(metrics: Mapping[str, Any]) -> str:
    """How far the released policy is from the best to a sum over groups; "" where nothing is known."""
    found = metrics.get("certificate")
    if not found:
        return ""
    if not found["near"]:
        return (
            "No certificate: a model that adds up what each group is worth explains only "
            f"{max(found['explained'], 0):.0%} of what tells the better trials apart, too little to "
            "say how much a better policy could gain"
        )
    best = "the best policy" if found["proven"] else "what any policy could reach"
    return (
        "Certificate: by a model that adds up what each group is worth, which explains "
        f"{found['explained']:.0%} of what tells the better trials apart, the released policy is "
        f"{100 * found['gap']:.2f} points below {best} under the caps, before fine-tuning"
    )

"""torch-pruning's dependency graph as an independent second opinion on which layers' channels are coupled.

A group is compared as the set of convolutions and linear layers whose output channels it holds. Only the sets are
compared: heads and head widths of one projection count once, and embeddings and single parameters are not looked at.
(DepGraph, Fang et al. 2023, arXiv 2301.12900.)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from amc.job.doctor.examination import Record, Subject
from amc.job.job import load_model
from amc.job.recipe import Recipe
from amc.surgery.layers import LAYERS
from amc.system.factory import one_line
from amc.system.isolation import Limits

LIMITS = Limits(90, 6)  # as torch-pruning's own pruner has in the benchmark of whole zoos
SHOWN = 5  # differences of each kind in print


def torch_pruning_groups(recipe: Recipe, subject: Subject) -> Record:
    """The groups of a recipe's network by torch-pruning: `groups`, lists of layers, or None and the `reason`."""
    import torch_pruning

    _, model = load_model(recipe, subject.classes, subject.shape)
    names = {module: name for name, module in model.named_modules()}
    call = subject.examples(1, recipe.seed)
    groups = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, call.args, lambda net, _: call.on(net))
            for group in graph.get_all_groups(ignored_layers=[]):
                outputs = [d.target.module for d, _ in group if graph.is_out_channel_pruning_fn(d.handler)]
                groups.append(sorted({names[m] for m in outputs if isinstance(m, LAYERS) and m in names}))
    except Exception as error:  # in many ways
        return {"groups": None, "reason": f"torch-pruning cannot trace this network: {one_line(error)}"}
    return {"groups": groups, "reason": None}


def compare_groups(record: Mapping[str, Any], theirs: Mapping[str, Any]) -> Record:
    """Groups on which both agree, and those that only one has, as sorted lists of layers.

    Args:
        record: of `amc.job.doctor.examination.examine`.
        theirs: of `torch_pruning_groups`.

    Returns:
        tool: its name and version. reason: why there is no opinion, else None. agree, only_ours, only_torch_pruning:
        lists of groups.
    """
    if theirs["groups"] is None:
        return failed_opinion(theirs["reason"])
    own, other = (
        {tuple(group) for group in groups if group}
        for groups in ([group["outputs"] for group in record["groups"]], theirs["groups"])
    )
    return _opinion(None, own & other, own - other, other - own)


def failed_opinion(reason: str) -> Record:
    """The same of a network that torch-pruning cannot trace."""
    return _opinion(reason, set(), set(), set())


def _opinion(reason: str | None, *kinds: set[tuple[str, ...]]) -> Record:
    names = ("agree", "only_ours", "only_torch_pruning")
    found = {name: [list(group) for group in sorted(kind)] for name, kind in zip(names, kinds, strict=True)}
    return {"tool": f"torch-pruning {version('torch-pruning')}", "reason": reason, **found}


def opinion_lines(record: Mapping[str, Any]) -> list[str]:
    """A second opinion in print: how many groups agree, and the first differences of each kind."""
    found = record["second_opinion"]
    if found["reason"]:
        return [f"second opinion: none; {found['reason']}"]
    agree, total = len(found["agree"]), len(found["agree"]) + len(found["only_ours"])
    lines = [f"second opinion ({found['tool']}): the same layers coupled in {agree} of {total} groups"]
    kept = {frozen["name"]: frozen["reason"] for frozen in record["frozen"]}
    for title, groups in (("only ours", found["only_ours"]), ("only torch-pruning's", found["only_torch_pruning"])):
        for group in groups[:SHOWN]:
            why = next((f" ({name} is not cut: {kept[name]})" for name in group if name in kept), "")
            names = ", ".join(group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")
            lines.append(f"  {title}: {names}{why if title != 'only ours' else ''}")
        if len(groups) > SHOWN:
            lines.append(f"  {title}: {len(groups) - SHOWN} more, all in --json")
    return lines

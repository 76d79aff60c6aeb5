"""What of a network can be cut, what cannot and why, how far its cost can go down, and whether cutting is exact."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from amc.cost.counts import count_bytes, count_macs, count_params
from amc.job.doctor.checks import EXAMPLES, check_policies, check_summary
from amc.job.job import load_data, load_model, settled
from amc.job.recipe import Recipe, load_recipe
from amc.surgery.channel_table import ChannelTable
from amc.surgery.coupled_channels import KEPT
from amc.surgery.grouping import trace_groups
from amc.surgery.layers import LAYERS, out_dim
from amc.surgery.random_parameters import randomise
from amc.system.device import Compute
from amc.system.errors import AmcError, ModelError, UsageError
from amc.system.isolation import failed_run, is_out_of_memory
from amc.zoo.call import Call, as_call, float_tensors
from amc.zoo.networks.source import ModelSource

Record = dict[str, Any]
DIGITS = 6


@dataclass(frozen=True)
class Subject:
    """What a network is examined on.

    Attributes:
        shape: of one example: channels, height, width for an image.
        classes: of the data, where there is data.
        call: several examples of data that are no images; None: noise of that shape.
    """

    shape: tuple[int, ...]
    classes: int | None = None
    call: Call | None = None

    def examples(self, number: int, seed: int) -> Call:
        """What the network is called with for some examples."""
        if self.call is not None:
            return self.call.head(number)
        return Call((torch.randn(number, *self.shape, generator=torch.Generator().manual_seed(seed)),))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def examine(recipe: Recipe, subject: Subject) -> Record:
    """Trace a recipe's network, count its reachable costs and check random policies; nothing is trained or measured.

    The network's normalisations and whatever it starts at zero are given random values first: zeros hide mistakes.

    Returns:
        ok: all checks hold. reason: why not, in one line, else None. groups, frozen: what can be cut, and what cannot
        with the reason; layers: all that a group touches, outputs: those whose output channels it holds. macs,
        min_macs, cut_share: of the dense network, of the smallest policy, and the share between them. checks: see
        `amc.job.doctor.checks`. trace_seconds: of tracing and proving.

    Raises:
        ModelError: the network cannot be built, traced or cut.
    """
    return _examined(*load_model(recipe, subject.classes, subject.shape), recipe, subject)


def examine_network(
    model: str | nn.Module,
    example: Any,
    *,
    options: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> Record:
    """What of a network can be cut, what cannot and why, and whether cutting is exact, as `amc doctor --json` says it.

    It runs in this process, however long it takes: see `amc.isolated_each` for networks that may not be trusted.

    Args:
        model: an `nn.Module`, which stays as it is, or a name as `amc.compress` takes it; its weights do not matter.
        example: what the network is called with: a tensor, a tuple of arguments or a dict of keyword arguments, the
            batch first; several examples, or one tensor of real numbers, in whose place noise of its shape is taken.
        options: arguments of the factory that `model` names.
        ignore: names of modules to leave alone.
        settings: any other recipe key, dotted: `{"surgery.round_to": 8}`.

    Returns:
        See `examine`; where the network cannot be built, traced or cut, `ok` is False and `reason` says why.
    """
    if isinstance(model, str):
        name, at_hand = model, None
    else:
        at_hand = ModelSource.of_object(model), copy.deepcopy(model).cpu().eval()
        name = at_hand[0].name
    recipe = load_recipe(None, {
        "name": name, "model.name": name, "model.weights": "none", "model.options": dict(options or {}),
        "model.ignore": list(ignore) or None, **(settings or {}),
    })  # fmt: skip
    call = as_call(example)
    first = next(iter(float_tensors(call.args)), torch.zeros(1))
    subject = Subject(tuple(first.shape[1:]), None, None if _is_noise_enough(call) else call)
    try:
        return _examined(*at_hand, recipe, subject) if at_hand else examine(recipe, subject)
    except Exception as error:  # a network may fail in any way
        cause = error if isinstance(error, AmcError) else failed_run(error)
        if is_out_of_memory(error) or not isinstance(cause, ModelError):
            raise
        return failure(recipe, subject, cause)


def _examined(source: ModelSource, model: nn.Module, recipe: Recipe, subject: Subject) -> Record:
    """`examine`, of a network at hand, whose weights are changed."""
    randomise(model)
    if recipe.surgery.round_to == "auto":
        example, compute = subject.examples(1, recipe.seed), Compute.detect()
        recipe = settled(recipe, compute.place(model), example.to(compute.device), compute, _say)
    start = perf_counter()
    table = trace_groups(model, subject.examples(1, recipe.seed), recipe.model.ignore, recipe.surgery.step)
    seconds = perf_counter() - start
    costs = {
        "macs": count_macs(table),
        "params": count_params(model, table),
        "bytes": count_bytes(model, table),
    }
    space = table.space
    low, high = (torch.from_numpy(policy)[None].double() for policy in (space.low, space.high))
    dense, smallest = ({unit: float(cost(policy)) for unit, cost in costs.items()} for policy in (high, low))
    checks = check_policies(model, source, table, costs, subject.examples(EXAMPLES, recipe.seed + 1), recipe.seed)
    return {
        "model": source.name,
        "input_shape": list(subject.shape),
        "options": dict(source.options),
        "ok": all(check["ok"] for check in checks),
        "reason": next((check["reason"] for check in checks if not check["ok"]), None),
        "macs": dense["macs"],
        "min_macs": smallest["macs"],
        "cut_share": round(1 - smallest["macs"] / max(dense["macs"], 1.0), DIGITS),
        "trace_seconds": round(seconds, 3),
        "checks": check_summary(checks),
        "groups": [
            {"name": group.name, "channels": group.size, "smallest": int(least), "step": group.step,
             "granularity": group.granularity, "layers": list(group.layers), "outputs": outputs,
             "macs_share": round(share, DIGITS)}
            for group, least, share, outputs in zip(
                table.groups, space.low, _alone(high, low, costs["macs"]), _outputs(model, table), strict=True
            )
        ],
        "frozen": [asdict(frozen) for frozen in table.frozen],
        "dense": dense,
        "smallest": smallest,
    }  # fmt: skip


def _outputs(model: nn.Module, table: ChannelTable) -> list[list[str]]:
    """For each group, the convolutions and linear layers whose output channels it holds."""
    found: list[list[str]] = [[] for _ in table.groups]
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            for index_map in table.index_maps.get(f"{name}.weight", {}).get(out_dim(module), ()):
                for group in np.unique(table.channel_group[index_map[index_map != KEPT]]):
                    found[group].append(name)
    return [sorted(set(names)) for names in found]


def examine_or_say_why(recipe: Recipe, subject: Subject) -> Record:
    """`examine`; a network that cannot be built, traced or cut gives a record with `ok` False and the reason.

    Memory that was refused is no record: it is raised.
    """
    try:
        return examine(recipe, subject)
    except ModelError as error:
        if is_out_of_memory(error):
            raise
        return failure(recipe, subject, error)


def failure(recipe: Recipe, subject: Subject | None, error: AmcError) -> Record:
    """The record of a network of which nothing is known but what stopped its examination."""
    return {
        "model": recipe.model.name,
        "input_shape": list(subject.shape) if subject else None,
        "options": dict(recipe.model.options),
        "ok": False,
        "reason": str(error),
        "checks": None,
    }


def subject_of(recipe: Recipe, text: str | None, *, explicit_data: bool) -> Subject:
    """What to examine a recipe's network on.

    Args:
        text: "3x224x224"; None: the data's when data was asked for or the network is ours, else the network's own.
        explicit_data: whether the user named the data.

    Raises:
        UsageError: the text is malformed.
    """
    from amc.zoo.networks.example_inputs import usual_shape
    from amc.zoo.networks.source import FACTORIES, NO_IMAGES, model_source

    name = recipe.model.name
    if text is not None:
        parts = text.lower().split("x")
        if not 2 <= len(parts) <= 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise UsageError(
                "--input must be CHANNELSxHEIGHTxWIDTH, CHANNELSxLENGTH or CHANNELSxFRAMESxHEIGHTxWIDTH, but is "
                f"{text!r}; e.g. 3x224x224"
            )
        return _without_data(recipe, tuple(map(int, parts)))
    if explicit_data or (name in FACTORIES and name not in NO_IMAGES):
        from amc.zoo.task import load_task

        splits = load_data(recipe)
        task = load_task(recipe.task.batch, recipe.task.metric, recipe.task.loss)
        call = task.call(next(iter(splits.train.batches(EXAMPLES, limit=EXAMPLES))))
        return Subject(splits.input_shape, splits.num_classes, None if _is_noise_enough(call) else call)
    source = model_source(name, num_classes=recipe.model.num_classes, options=recipe.model.options)
    size = recipe.data.size or (own_size(name) if name.startswith("timm:") else None)
    return _without_data(recipe, usual_shape(source, size))


def _without_data(recipe: Recipe, shape: tuple[int, ...]) -> Subject:
    """Noise of `shape`; as pairs or lists of images where that is what the network takes."""
    from amc.zoo.networks.example_inputs import example_of

    call = example_of(recipe.model.name, shape, EXAMPLES, num_classes=recipe.model.num_classes)
    return Subject(shape, recipe.model.num_classes, None if _is_noise_enough(call) else call)


def _is_noise_enough(call: Call) -> bool:
    """A lone tensor of real numbers: noise shows mistakes better than images do."""
    lone = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    return isinstance(lone, torch.Tensor) and lone.is_floating_point()


def own_size(name: str) -> int:
    """Height and width in pixels of the images that a network was made for; 224 where nobody says."""
    prefix, _, rest = name.partition(":")
    if prefix == "timm":
        from amc.zoo.networks.source import import_timm

        config = import_timm().models.get_pretrained_cfg(rest, allow_unregistered=True)
        if config is not None and config.input_size:
            return int(config.input_size[-1])
    return 224


def _alone(high: torch.Tensor, low: torch.Tensor, macs: Any) -> list[float]:
    """The share of all MACs that goes when one group alone is made as small as it can be."""
    policies = high.repeat(high.shape[1], 1)
    policies.diagonal().copy_(low[0])
    shares: list[float] = (1 - macs(policies) / macs(high)).tolist()
    return shares

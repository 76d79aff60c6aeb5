"""Stages as they are run once they are trained: BatchNorm folded into the layers before it, weights ready to multiply.

What is given stays as it is; layers that are changed are new ones, all others are shared.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from amc.cascade.serving.tensor_tree import leaves
from amc.cascade.stages.stage import ExitStage, NetworkStage, Stage, State
from amc.surgery.fx_graph import traced_network
from amc.system.device import Compute
from amc.system.errors import ModelError

FOLDED = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d, nn.Linear: nn.BatchNorm1d}
TOLERANCE = 1e-4  # of the largest number, in float32: folding changes nothing but rounding


@torch.no_grad()
def for_inference(stages: Sequence[Stage], inputs: Tensor, compute: Compute) -> tuple[Stage, ...]:
    """Stages that answer as `stages` do, up to rounding, in less time.

    A stage that cannot be traced, or that would answer otherwise, stays as it is. In bfloat16 weights are rounded here
    instead of at every call: the products are the same.

    Args:
        inputs: (n, ...) at least one, on the compute's device; what is folded is checked on the first.
    """
    one = inputs[:1]
    batches = (one, torch.cat([one, one.flip(-1)]))  # what a trace takes for constant may hold for one size alone
    states: list[State] = [{} for _ in batches]
    found: list[Stage] = []
    for stage in stages:
        new = _rebuilt(stage, folded)
        wanted = [stage.run(batch, state) for batch, state in zip(batches, states, strict=True)]
        alike = new is not stage and _alike(new, batches, states, wanted)
        found.append(stage if not alike else _rebuilt(new, rounded) if compute.bfloat16 else new)
        states = [state for _, state in wanted]
    return tuple(found)


def folded(module: nn.Module) -> nn.Module:
    """`module`'s graph with each BatchNorm that follows a convolution or linear layer folded into it; `module` itself
    where it cannot be traced.
    """
    try:
        traced = traced_network(module)
    except ModelError:
        return module
    number = 0
    for node, layer in _layers(traced):
        norm = _norm_behind(traced, node, layer)
        if norm is not None:
            after = next(iter(node.users))
            traced.add_submodule(f"folded{number}", _fold(layer, norm))
            node.target, number = f"folded{number}", number + 1
            after.replace_all_uses_with(node)
            traced.graph.erase_node(after)
    return fx.GraphModule(traced, traced.graph, class_name="Folded")


def rounded(module: nn.Module) -> nn.Module:
    """A traced module with the weights of its convolutions and linear layers in bfloat16, as autocast has them."""
    if not isinstance(module, fx.GraphModule):
        return module
    for number, (node, layer) in enumerate(_layers(module)):
        module.add_submodule(f"rounded{number}", copy.deepcopy(layer).bfloat16().requires_grad_(False))
        node.target = f"rounded{number}"
    return fx.GraphModule(module, module.graph, class_name="Rounded")


def _rebuilt(stage: Stage, change: Callable[[nn.Module], nn.Module]) -> Stage:
    """A stage of changed modules; itself where nothing changed."""
    if isinstance(stage, NetworkStage):
        model = change(stage.model)
        return stage if model is stage.model else replace(stage, model=model)
    if isinstance(stage, ExitStage):
        bodies, head = tuple(map(change, stage.bodies)), change(stage.head)
        return stage if (*bodies, head) == (*stage.bodies, stage.head) else replace(stage, bodies=bodies, head=head)
    return stage


def _alike(
    stage: Stage, batches: Sequence[Tensor], states: Sequence[State], wanted: Sequence[tuple[Tensor, State]]
) -> bool:
    """Whether a rebuilt stage answers, and hands on, what the given one does."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where a graph fails, beside raising
            found = [stage.run(batch, state) for batch, state in zip(batches, states, strict=True)]
    except Exception:  # anyone's code, run by a trace of it
        return False
    ours, theirs = ([tensor for _, tensor in leaves(answers)] for answers in (found, wanted))
    return len(ours) == len(theirs) and all(
        new.shape == old.shape and bool((new - old).abs().max() <= TOLERANCE * (1 + old.abs().max()))
        for new, old in zip(ours, theirs, strict=True)
    )


def _layers(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Module]]:
    """Calls of plain convolutions and linear layers."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            layer = traced.get_submodule(str(node.target))
            if type(layer) in FOLDED:
                yield node, layer


def _norm_behind(traced: fx.GraphModule, node: fx.Node, layer: nn.Module) -> nn.Module | None:
    """The BatchNorm that alone reads the layer's outputs, by the statistics that it has kept."""
    after = next(iter(node.users), None)
    if len(node.users) != 1 or after is None or after.op != "call_module":
        return None
    norm = traced.get_submodule(str(after.target))
    fits = type(norm) is FOLDED[type(layer)] and norm.running_mean is not None
    return norm if fits else None


def _fold(layer: nn.Module, norm: nn.Module) -> nn.Module:
    fold = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    made: nn.Module = fold(layer, norm)  # type: ignore[arg-type, type-var]
    return made

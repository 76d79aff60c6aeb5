"""Which channels can only be removed together: torch-pruning's dependency graph, read once into plain index pairs.

This is the only file that imports torch-pruning. Its traps are dealt with here: it traces autograd nodes, so a frozen
parameter would hide layers (the trace runs on a copy whose parameters all require gradients); it leaves the model in
`eval` mode (the copy's); it keeps state between pruners in default arguments (no pruner is ever built); it couples
whole layers where only some channels meet (we read the index pairs, not the layers).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.errors import ModelError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROOTS = (*CONVOLUTIONS, nn.Linear)

Axis = tuple[str, str]  # module name and "out" or "in"; or parameter name and the number of its dimension
Indices = NDArray[np.int64]


@dataclass
class Couplings:
    """What was traced: axes with their lengths, pairs of coupled slots, and slots that must stay, with the reason."""

    lengths: dict[Axis, int] = field(default_factory=dict)
    pairs: list[tuple[Axis, Indices, Axis, Indices]] = field(default_factory=list)
    kept: list[tuple[Axis, Indices, str]] = field(default_factory=list)


def trace(model: nn.Module, inputs: Tensor, ignore: Sequence[str] = ()) -> Couplings:
    """Trace `model` on `inputs` (B, C, H, W); the model itself is left as it was found.

    Args:
        model: any network torch-pruning can follow.
        inputs: one example batch.
        ignore: names of modules none of whose channels may be removed.

    Raises:
        ModelError: the network cannot be run or followed, or an ignored name does not exist.
    """
    unknown = [name for name in ignore if name not in dict(model.named_modules())]
    if unknown:
        raise ModelError(f"a name in `ignore` must be a module of the network, but {unknown[0]!r} is none")
    twin = copy.deepcopy(model).requires_grad_(True)
    graph = _dependency_graph(twin, inputs)
    names: dict[object, str] = {module: name for name, module in twin.named_modules()}
    ignored = [
        module
        for name, module in twin.named_modules()
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in ignore)
    ]
    found = Couplings()
    covered: dict[Axis, NDArray[np.bool_]] = {}
    for name, module in twin.named_modules():
        if not isinstance(module, ROOTS) or module not in graph.module2node:
            continue
        root: Axis = (name, "out")
        if root in covered and covered[root].all():
            continue
        _read_group(graph, module, root, names, ignored, found, covered)
    _couple_blocks(twin, found)
    _couple_shared(twin, found)
    return found


def _dependency_graph(model: nn.Module, inputs: Tensor):  # type: ignore[no-untyped-def]
    import torch_pruning

    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            model.eval()(inputs)  # torch-pruning hides the network's own error behind a second call
            return torch_pruning.DependencyGraph().build_dependency(model, inputs, verbose=False)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise ModelError(
                f"the network must run on an input of shape {tuple(inputs.shape)} and be traceable, but "
                f"{type(error).__name__}: {first}; check the input size and channels"
            ) from error


def _read_group(graph, module, root, names, ignored, found, covered) -> None:  # type: ignore[no-untyped-def]
    """Add every index pair of the group that starts at the output channels of `module`."""
    from torch_pruning import ops

    pruner = graph.get_pruner_of_module(module)
    length = _axis_length(module, "out")
    group = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(length)))
    found.lengths[root] = length
    for item in group.items:
        target, indices = item.dep.target, np.asarray(item.idxs, dtype=np.int64)
        roots = np.asarray(item.root_idxs, dtype=np.int64)
        outwards = graph.is_out_channel_pruning_fn(item.dep.handler)
        if target.type == ops.OPTYPE.PARAMETER:
            axis: Axis = (graph._param_to_name[target.module], str(target.pruning_dim))
            found.lengths[axis] = target.module.shape[target.pruning_dim]
        elif target.module in names:
            axis = (names[target.module], _side(target.module, outwards))
            if axis[0] == "" or not _is_known(target.module):
                if list(target.module.parameters(recurse=False)):
                    kind = type(target.module).__name__
                    found.kept.append((root, roots, f"it runs through {axis[0]} ({kind}), which cannot be cut yet"))
                continue
            if isinstance(target.module, nn.PReLU) and target.module.num_parameters == 1:
                continue
            found.lengths[axis] = _axis_length(target.module, axis[1])
        else:
            if type(target.module).__name__ == "_OutputOp":
                found.kept.append((root, roots, "it is the network's output"))
            elif target.type == ops.OPTYPE.SPLIT:
                _couple_pieces(target.module.offsets or [], indices, root, roots, found)
            continue
        if indices.max() >= found.lengths[axis]:  # torch-pruning lost count: an index, a slice, an uneven split
            found.kept.append((root, roots, f"its channels could not be followed to {axis[0]}"))
            continue
        if target.module in ignored and (outwards or axis[1] == "out"):
            found.kept.append((axis, indices, f"{axis[0]} is in `ignore`"))
        if isinstance(target.module, nn.LayerNorm):
            found.kept.append((axis, indices, f"{axis[0]} (LayerNorm) normalises over these channels"))
        found.pairs.append((root, roots, axis, indices))
        covered.setdefault(axis, np.zeros(found.lengths[axis], dtype=np.bool_))[indices] = True


def _couple_pieces(offsets: Sequence[int], indices: Indices, root: Axis, roots: Indices, found: Couplings) -> None:
    """`chunk` divides what is left into equal parts again: every part must lose the same places.

    torch-pruning couples none of them, and may take one part for another; once coupled, that no longer matters.
    """
    widths = np.diff(offsets)  # empty where torch-pruning found none
    if len(set(widths.tolist())) != 1 or len(indices) != offsets[-1]:
        found.kept.append((root, roots, "it is split into unequal parts"))
        return
    parts = roots[np.argsort(indices)].reshape(len(widths), -1)
    for part in parts[1:]:
        found.pairs.append((root, parts[0], root, part))


def _couple_blocks(model: nn.Module, found: Couplings) -> None:
    """A grouped convolution or GroupNorm loses whole blocks of channels, so what is left computes the same as before.

    torch-pruning instead takes the same number from each block of a grouped convolution, whichever channels those
    are, and moves channels between the statistics of a GroupNorm.
    """
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS) and module.groups > 1:
            sides, blocks = ["out", "in"], module.groups
        elif isinstance(module, nn.GroupNorm):
            sides, blocks = ["out"], module.num_groups
        else:
            continue
        if (name, "out") not in found.lengths:
            continue
        for side in sides:
            axis = (name, side)
            length = found.lengths.setdefault(axis, _axis_length(module, side))
            first = np.arange(length) // (length // blocks) * (_axis_length(module, "out") // blocks)
            found.pairs.append(((name, "out"), first, axis, np.arange(length)))


def _couple_shared(model: nn.Module, found: Couplings) -> None:
    """Layers that hold one tensor lose the same slices of it."""
    holders: dict[tuple[int, int], Axis] = {}
    for name, module in model.named_modules():
        if not _is_known(module):
            continue
        own = dict(module.named_parameters(recurse=False))
        for side in ("out", "in") if isinstance(module, ROOTS) else ("out",):
            for tensor, dim in tensor_axes(module, side):
                if tensor not in own:
                    continue
                axis = (name, side)
                other = holders.setdefault((id(own[tensor]), dim), axis)
                if other != axis and (other in found.lengths or axis in found.lengths):
                    places = np.arange(_axis_length(module, side))
                    found.lengths[axis] = found.lengths[other] = len(places)
                    found.pairs.append((other, places, axis, places))


def _is_known(module: nn.Module) -> bool:
    known = (*ROOTS, *BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.Embedding, nn.PReLU)
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return False
    return isinstance(module, known) or _is_affine_instance_norm(module)


def _is_affine_instance_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)) and module.affine


def _side(module: nn.Module, outwards: bool) -> str:
    """Layers that only pass channels through have one axis, "out"."""
    return "out" if outwards or not isinstance(module, ROOTS) else "in"


def _axis_length(module: nn.Module, side: str) -> int:
    if isinstance(module, CONVOLUTIONS):
        return int(module.out_channels if side == "out" else module.in_channels)
    if isinstance(module, nn.Linear):
        return int(module.out_features if side == "out" else module.in_features)
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.GroupNorm):
        return int(module.num_channels)
    if isinstance(module, nn.Embedding):
        return int(module.embedding_dim)
    if isinstance(module, nn.PReLU):
        return int(module.num_parameters)
    return int(module.num_features)  # type: ignore[arg-type]


def tensor_axes(module: nn.Module, side: str) -> list[tuple[str, int]]:
    """The tensors of `module`, by their own names, and the dimension along which they hold the channels of `side`.

    The input of a grouped convolution stands in no dimension of its weight: its blocks leave with the output's.
    """
    own = {name for name, _ in module.named_parameters(recurse=False)}
    own |= {name for name, buffer in module.named_buffers(recurse=False) if buffer.ndim > 0}
    if isinstance(module, TRANSPOSED):
        return [("weight", 0)] if side == "in" else [("weight", 1), *([("bias", 0)] if "bias" in own else [])]
    if isinstance(module, CONVOLUTIONS) and side == "in":
        return [("weight", 1)] if module.groups == 1 else []
    if isinstance(module, nn.Linear) and side == "in":
        return [("weight", 1)]
    if isinstance(module, nn.Embedding):
        return [("weight", 1)]
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return []
    return [(name, 0) for name in ("weight", "bias", "running_mean", "running_var") if name in own]

"""What a cut loses and gets back without training: fold removed channels into readers, then re-estimate BatchNorm.

Folding. Over the training pictures, what the removed input channels r of a layer carry is partly a linear function of
the kept ones k: x_r ~ B x_k + c, with B = S_rk (S_kk + ridge)^-1 from the covariance S of the layer's input. Then
W_k' = W_k + W_r B gives back that part exactly, and W_r c goes into the bias, or is left to the BatchNorm that follows.
(Least-squares reconstruction of the next layer, as in He et al. 2017, arXiv 1707.06168; here in closed form.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc.call import Call, float_tensors
from amc.data.splits import Batch
from amc.surgery.cut import Kept, assembled, cut_tensors, stays, with_tensors
from amc.surgery.layers import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from amc.surgery.table import OwnerTable
from amc.task import CLASSIFICATION, Task

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # in units of the mean variance of the kept channels


@dataclass(frozen=True)
class Moments:
    """First and second moments of every reader's input channels, from the dense network.

    Attributes:
        mean: layer name -> (C,) float64.
        covariance: layer name -> (C, C) float64.
        ridge: layer name -> the ridge that reconstructs held-out pictures best.
        rescaled: layers whose output scale is free, because only a BatchNorm reads it: layer name -> BatchNorm name.
    """

    mean: Mapping[str, Tensor]
    covariance: Mapping[str, Tensor]
    ridge: Mapping[str, float]
    rescaled: Mapping[str, str]


def readers(model: nn.Module, table: OwnerTable) -> dict[str, int]:
    """Layers that read removable channels by a full matrix, and how many input features one channel stands for.

    More than one feature a channel is a Linear layer behind a flattened picture. Layers that share a weight are left
    out: what is folded for one would be wrong for the other.
    """
    found, shared = {}, _shared_weights(model)
    for name, owners in table.inputs.items():
        owner = owners[0]
        layer = model.get_submodule(name)
        if isinstance(layer, TRANSPOSED) or (isinstance(layer, CONVOLUTIONS) and layer.groups > 1):
            continue
        if id(layer.weight) in shared:
            continue
        run = 1
        if isinstance(layer, nn.Linear):  # (c0, c0, ..., c1, c1, ...): the length of the runs, where all agree
            edges = np.flatnonzero(np.diff(owner, prepend=owner[0] - 1, append=owner[-1] - 1))
            lengths = np.unique(np.diff(edges))
            run = int(lengths[0]) if len(lengths) == 1 else 1
        found[name] = run
    return found


def _shared_weights(model: nn.Module) -> set[int]:
    """The ids of parameters that several modules hold."""
    held = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {identity for identity, holders in held.items() if holders > 1}


class _MomentSums:
    """Running sums over one half of the pictures."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.square = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self.total += rows.sum(0).double().cpu()
        self.square += (rows.T @ rows).double().cpu()


@torch.no_grad()
def take_moments(
    model: nn.Module, table: OwnerTable, batches: Iterable[Batch], seed: int = 0, task: Task = CLASSIFICATION
) -> Moments:
    """Run the dense network once over `batches` and choose each reader's ridge on the half it was not fitted on.

    The ridge is chosen for three random halves of the channels; it then serves every policy.
    """
    runs = readers(model, table)
    halves: dict[str, tuple[_MomentSums, _MomentSums]] = {}
    turn = 0

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = _channel_rows(module, args[0], runs[name])
            if name not in halves:
                halves[name] = (_MomentSums(rows.shape[1]), _MomentSums(rows.shape[1]))
            halves[name][turn % 2].add(rows)

        return hook

    device = next(model.parameters()).device
    handles = [model.get_submodule(name).register_forward_pre_hook(record(name)) for name in runs]
    try:
        with evaluating(model):
            for turn, batch in enumerate(batches):  # noqa: B007 - the hooks read it
                call = task.call(batch).to(device)
                call.on(model)
                example = call.head(2)
    finally:
        for handle in handles:
            handle.remove()
    rng = np.random.default_rng(seed)
    mean, covariance, ridge = {}, {}, {}
    for name, (left, right) in halves.items():
        count = left.count + right.count
        mean[name] = (left.total + right.total) / count
        covariance[name] = (left.square + right.square) / count - torch.outer(mean[name], mean[name])
        ridge[name] = _choose_ridge(left, right, rng) if right.count else RIDGES[1]
    return Moments(mean, covariance, ridge, _free_scales(model, example))


def _channel_rows(module: nn.Module, inputs: Tensor, run: int) -> Tensor:
    """A layer's input as (observations, channels) float32."""
    if isinstance(module, nn.Linear):
        if run > 1:
            inputs = inputs.reshape(*inputs.shape[:-1], -1, run).transpose(-1, -2)
        return inputs.reshape(-1, inputs.shape[-1]).float()
    return inputs.movedim(1, -1).reshape(-1, inputs.shape[1]).float()


def _choose_ridge(left: _MomentSums, right: _MomentSums, rng: np.random.Generator) -> float:
    covariances = []
    for half in (left, right):
        mean = half.total / half.count
        covariances.append(half.square / half.count - torch.outer(mean, mean))
    fit, held_out = covariances
    errors = np.zeros(len(RIDGES))
    for _ in range(3):
        order = torch.from_numpy(rng.permutation(len(fit)))
        kept, gone = order[: (len(fit) + 1) // 2], order[(len(fit) + 1) // 2 :]
        for index, ridge in enumerate(RIDGES):
            b = _regression(fit, kept, gone, ridge)
            cross = held_out[gone][:, kept]
            residual = held_out[gone, gone] - 2 * (b * cross).sum(1) + ((b @ held_out[kept][:, kept]) * b).sum(1)
            errors[index] += float(residual.sum())
    return RIDGES[int(errors.argmin())]


def _regression(covariance: Tensor, kept: Tensor, gone: Tensor, ridge: float) -> Tensor:
    """B (gone, kept): the ridge regression of removed channels on kept ones."""
    s_kk = covariance[kept][:, kept]
    weight = ridge * s_kk.diagonal().mean().clamp(min=1e-12)
    s_kk = s_kk + weight * torch.eye(len(kept), dtype=s_kk.dtype)
    solution: Tensor = torch.linalg.solve(s_kk, covariance[kept][:, gone])
    return solution.T


@torch.no_grad()
def cut_and_fold(model: nn.Module, table: OwnerTable, kept: Kept, moments: Moments | None) -> nn.Module:
    """Cut `model` to the `kept` units, (U,) bool, and fold what was removed into its readers.

    The norm of every filter that feeds only a BatchNorm is brought back to the dense filter's, with the BatchNorm's
    statistics to match: the function is the same, and fine-tuning then takes steps of the usual relative size.
    `moments` None cuts without folding.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if moments is None:
        return assembled(model, table, kept, cut_tensors(tensors, table, kept))
    folded: dict[str, Tensor] = {name: tensor.detach() for name, tensor in tensors.items()}
    keep_all = np.append(kept, True)
    for name, run in readers(model, table).items():
        kept_inputs = stays(table.inputs[name], keep_all)[::run]
        if kept_inputs.all():
            continue
        _fold(folded, name, run, kept_inputs, moments)
    sliced = cut_tensors(folded, table, kept)
    for name, batch_norm in moments.rescaled.items():
        _restore_norm(sliced, tensors, table, keep_all, name, batch_norm)
    return assembled(model, table, kept, sliced)


def _fold(tensors: dict[str, Tensor], name: str, run: int, kept_inputs: Kept, moments: Moments) -> None:
    """Add W_r B to the kept input channels of one reader, and W_r c to its bias where it has one."""
    weight = tensors[f"{name}.weight"]
    kept = torch.from_numpy(np.flatnonzero(kept_inputs))
    gone = torch.from_numpy(np.flatnonzero(~kept_inputs))
    b = _regression(moments.covariance[name], kept, gone, moments.ridge[name]).to(weight.device, weight.dtype)
    shaped = weight.reshape(len(weight), -1, run) if run > 1 else weight
    w_gone = shaped.index_select(1, gone.to(weight.device))
    new = shaped.clone()
    new[:, kept.to(weight.device)] += torch.einsum("or...,rk->ok...", w_gone, b)
    tensors[f"{name}.weight"] = new.flatten(1) if run > 1 else new
    bias = tensors.get(f"{name}.bias")
    if bias is not None:
        mean = moments.mean[name].to(weight.device, weight.dtype)
        constant = mean[gone.to(weight.device)] - b @ mean[kept.to(weight.device)]
        per_channel = w_gone.flatten(2).sum(2) if w_gone.ndim > 2 else w_gone
        tensors[f"{name}.bias"] = bias + per_channel @ constant


def _restore_norm(
    sliced: dict[str, Tensor], dense: Mapping[str, Tensor], table: OwnerTable, keep_all: Kept, name: str, norm: str
) -> None:
    new = sliced[f"{name}.weight"]
    owners = table.owners.get(f"{name}.weight", {}).get(0)
    old = dense[f"{name}.weight"].detach()
    if owners is not None:
        old = old[torch.from_numpy(np.flatnonzero(stays(owners, keep_all))).to(old.device)]
    scale = (old.flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(0.1, 10.0)
    sliced[f"{name}.weight"] = new * scale.view(-1, *[1] * (new.ndim - 1))
    if f"{name}.bias" in sliced:
        sliced[f"{name}.bias"] = sliced[f"{name}.bias"] * scale
    sliced[f"{norm}.running_mean"] = sliced[f"{norm}.running_mean"] * scale
    sliced[f"{norm}.running_var"] = sliced[f"{norm}.running_var"] * scale.square()


def _free_scales(model: nn.Module, example: Call) -> dict[str, str]:
    """Convolutions whose output only a BatchNorm reads: found by passing tensors on, proved by scaling them all."""
    produced: dict[int, tuple[str, Tensor]] = {}
    pairs: dict[str, str] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: produced.__setitem__(id(output), (name, output))

    def match(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if id(args[0]) in produced:
                pairs[produced[id(args[0])][0]] = name

        return hook

    handles, shared = [], _shared_weights(model)
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS) and not isinstance(module, TRANSPOSED) and id(module.weight) not in shared:
            handles.append(module.register_forward_hook(note(name)))
        elif isinstance(module, BATCH_NORMS) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(match(name)))
    try:
        with evaluating(model):
            before = float_tensors(example.on(model))
    finally:
        for handle in handles:
            handle.remove()
    if not pairs:
        return {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    scaled = {name: tensor.detach() for name, tensor in tensors.items()}
    for layer, norm in pairs.items():
        for tensor in (f"{layer}.weight", f"{layer}.bias", f"{norm}.running_mean"):
            if tensor in scaled:
                scaled[tensor] = scaled[tensor] * 2
        scaled[f"{norm}.running_var"] = scaled[f"{norm}.running_var"] * 4
    twin = with_tensors(model, scaled)
    with evaluating(twin):
        after = float_tensors(example.on(twin))
    return pairs if len(before) == len(after) and all(map(_nearly_equal, before, after)) else {}


def _nearly_equal(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape:  # boxes come in any number
        return False
    return before.numel() == 0 or torch.allclose(before, after, rtol=1e-2, atol=1e-2 * float(before.abs().max()))


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Batch], task: Task = CLASSIFICATION) -> None:
    """Replace every BatchNorm's running statistics by plain averages over `batches`, in place.

    Dropout stays off; momenta and training modes are left as they were found. (EagleEye, Li et al. 2020,
    arXiv 2007.02491.)
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    device, seen = next(model.parameters()).device, 0
    try:
        with evaluating(model):
            for norm in norms:
                norm.train()
            for batch in batches:
                call = task.call(batch).to(device)
                if seen and len(call) == 1:  # one picture has no variance where the network has one pixel left
                    continue
                seen += len(call)
                for norm in norms:
                    norm.momentum = len(call) / seen  # every picture counts alike, in a short last batch too
                call.on(model)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """`eval` mode inside, every module's own mode again outside."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode

"""What a cut loses and gets back without training: fold removed channels into readers, then re-estimate BatchNorm.

Folding. Over the training examples, what the removed input channels r of a layer carry is partly a linear function of
the kept ones k: x_r ~ B x_k + c, with B = S_rk (S_kk + ridge)^-1 from the covariance S of the layer's input. Then
W_k' = W_k + W_r B gives back that part exactly, and W_r c goes into the bias, or is left to the BatchNorm that follows.
(Least-squares reconstruction of the next layer, as in He et al. 2017, arXiv 1707.06168; here in closed form.)

Moments are those of the dense network, taken once. Re-taking them in the cut network, in sweeps over all layers at once
that fit its inputs to the dense ones on 1,000 images, was tried on the quickstart's ResNet-20, eight random policies
at 18 to 47 % of its multiply-adds: accuracy 81.4 % on average before, 81.5 % after one sweep, 81.6 % after two, half of
the policies worse off, at more than twice a trial's own time a sweep. It does not pay, and is not done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc.surgery.blueprint import Blueprint
from amc.surgery.channel_table import ChannelTable
from amc.surgery.cutting import Kept, assembled, cut_tensors, named_tensors, stays, with_tensors
from amc.surgery.layers import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from amc.system.errors import DataError
from amc.system.eval_mode import evaluating
from amc.zoo.call import Call, float_tensors
from amc.zoo.data.splits import Batch
from amc.zoo.task import CLASSIFICATION, Task

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # in units of the mean variance of the kept channels


@dataclass(frozen=True)
class Moments:
    """First and second moments of every reader's input channels, from the dense network.

    Attributes:
        mean: layer name -> (C,) float64.
        covariance: layer name -> (C, C) float64.
        ridge: layer name -> the ridge that reconstructs held-out examples best.
        rescaled: layers whose output scale is free, because only a BatchNorm reads it: layer name -> BatchNorm name.
    """

    mean: Mapping[str, Tensor]
    covariance: Mapping[str, Tensor]
    ridge: Mapping[str, float]
    rescaled: Mapping[str, str]


def readers(model: nn.Module, table: ChannelTable) -> dict[str, int]:
    """Layers that read removable channels by a full matrix, and how many input features one channel stands for.

    More than one feature a channel is a Linear layer behind a flattened image. Layers that share a weight are
    none of them: what is folded for one would be wrong for the other.
    """
    found, shared = {}, _shared_weights(model)
    for name, index_maps in table.inputs.items():
        layer = model.get_submodule(name)
        if isinstance(layer, TRANSPOSED) or (isinstance(layer, CONVOLUTIONS) and layer.groups > 1):
            continue
        if id(layer.weight) in shared:
            continue
        run = 1
        if isinstance(layer, nn.Linear):  # (c0, c0, ..., c1, c1, ...): the length of the runs, where all agree
            changes = np.logical_or.reduce([np.diff(index_map) != 0 for index_map in index_maps])
            lengths = np.unique(np.diff(np.flatnonzero(changes) + 1, prepend=0, append=len(index_maps[0])))
            run = int(lengths[0]) if len(lengths) == 1 else 1
        found[name] = run
    return found


def _shared_weights(model: nn.Module) -> set[int]:
    """The ids of parameters that several modules hold."""
    held = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {identity for identity, holders in held.items() if holders > 1}


class _MomentSums:
    """Running sums over one half of the examples."""

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
    model: nn.Module, table: ChannelTable, batches: Iterable[Batch], seed: int = 0, task: Task = CLASSIFICATION
) -> Moments:
    """Run the dense network once over `batches` and choose each reader's ridge on the half it was not fitted on.

    The ridge is chosen for three random halves of the channels; it then serves every policy.
    """
    runs = readers(model, table)
    halves: dict[str, tuple[_MomentSums, _MomentSums]] = {}
    turn = 0

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = _channel_rows(module, args[0], runs[name] if args[0].ndim == 2 else 1)  # no image, but tokens
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
        _check_finite(name, left)
        _check_finite(name, right)
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


def _check_finite(name: str, sums: _MomentSums) -> None:
    if not bool(sums.square.isfinite().all()):
        raise DataError(f"training examples must be finite, but what reaches {name} is NaN or infinite; check the data")


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
    right = covariance.index_select(0, kept).index_select(1, gone)
    return _solve(covariance, kept, right, ridge).T


def _solve(covariance: Tensor, kept: Tensor, right: Tensor, ridge: float) -> Tensor:
    """(S_kk + ridge)^-1 times `right` (kept, any), float64: a tenth of the digits of S_kk would be lost in float32."""
    s_kk = covariance.index_select(0, kept).index_select(1, kept)
    diagonal = s_kk.diagonal()
    diagonal += ridge * diagonal.mean().clamp(min=1e-12)
    factor, failed = torch.linalg.cholesky_ex(s_kk)
    solution: Tensor = torch.linalg.solve(s_kk, right) if failed else torch.cholesky_solve(right, factor)
    return solution


def cut_and_fold(model: nn.Module, table: ChannelTable, kept: Kept, moments: Moments | None) -> nn.Module:
    """Cut `model` to the `kept` channels, (C,) bool, and fold what was removed into its readers; see `Cutter`."""
    return Cutter(model, table, moments)(kept)


class Cutter:
    """Cuts one dense network again and again: what does not depend on the policy is found once.

    The norm of every filter that feeds only a BatchNorm is brought back to the dense filter's, with the BatchNorm's
    statistics to match: the function is the same, and fine-tuning then takes steps of the usual relative size.
    Without moments nothing is folded.
    """

    def __init__(self, model: nn.Module, table: ChannelTable, moments: Moments | None) -> None:
        self.model, self.table, self.moments = model, table, moments
        self.blueprint = Blueprint(model)
        self.tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
        self.readers = [name for name in readers(model, table) if name in moments.mean] if moments else []
        rescaled = moments.rescaled if moments else {}
        self.norms = {name: _filter_norms(self.tensors[f"{name}.weight"]) for name in rescaled}

    def __call__(self, kept: Kept) -> nn.Module:
        """The network of the `kept` channels, (C,) bool, with tensors of its own."""
        sliced = self.cut(kept)
        self.fold(sliced, kept)
        return self.build(sliced, kept)

    def cut(self, kept: Kept) -> dict[str, Tensor]:
        """The tensors that are left, nothing folded."""
        return cut_tensors(self.tensors, self.table, kept)

    @torch.no_grad()
    def fold(self, sliced: dict[str, Tensor], kept: Kept) -> None:
        """Fold what was removed into the `sliced` tensors, in place of the dictionary's entries."""
        if self.moments is None:
            return
        keep_all = np.append(kept, True)
        for name in self.readers:
            run = self.tensors[f"{name}.weight"].shape[1] // len(self.moments.mean[name])
            kept_inputs = stays(self.table.inputs[name], keep_all)[::run]
            if not kept_inputs.all():
                self._fold_one(sliced, name, run, kept_inputs, keep_all)
        for name, norm in self.moments.rescaled.items():
            rows = self._rows(name, keep_all)
            _restore_norm(sliced, self.norms[name] if rows is None else self.norms[name][rows], name, norm)

    def build(self, sliced: Mapping[str, Tensor], kept: Kept) -> nn.Module:
        """A network that holds the `sliced` tensors, and runs."""
        return assembled(self.blueprint, self.table, kept, sliced)

    def _rows(self, name: str, keep_all: Kept) -> Tensor | None:
        """The output channels of a layer that are left; None where no policy removes any."""
        index_maps = self.table.index_maps.get(f"{name}.weight", {}).get(0)
        if index_maps is None:
            return None
        return torch.from_numpy(np.flatnonzero(stays(index_maps, keep_all))).to(self.tensors[f"{name}.weight"].device)

    def _fold_one(self, sliced: dict[str, Tensor], name: str, run: int, kept_inputs: Kept, keep_all: Kept) -> None:
        """Add W_r B to the weights of one reader, and W_r c to its bias where it has one."""
        assert self.moments is not None
        mean, covariance, ridge = self.moments.mean[name], self.moments.covariance[name], self.moments.ridge[name]
        dense, small = self.tensors[f"{name}.weight"], sliced[f"{name}.weight"]
        if run > 1:
            dense, small = (weight.reshape(len(weight), -1, run) for weight in (dense, small))
        kept, gone = (torch.from_numpy(np.flatnonzero(chosen)) for chosen in (kept_inputs, ~kept_inputs))
        rows = self._rows(name, keep_all)
        w_gone = dense if rows is None else dense.index_select(0, rows)
        w_gone = w_gone.index_select(1, gone.to(dense.device)).movedim(1, -1)  # channels-last: nothing is moved
        filters = w_gone.reshape(-1, len(gone))
        if not len(kept):
            added = filters.new_zeros(len(filters), 0)
        elif len(filters) < len(gone):  # solve for W_r S_rk, which is smaller than S_rk
            right = covariance.index_select(0, kept).index_select(1, gone) @ filters.to(covariance).T
            added = _solve(covariance, kept, right, ridge).T.to(dense)
        else:
            added = filters @ _regression(covariance, kept, gone, ridge).to(dense)
        added = added.reshape(*w_gone.shape[:-1], len(kept))
        new = small + added.movedim(-1, 1)
        sliced[f"{name}.weight"] = new.flatten(1) if run > 1 else new
        bias = sliced.get(f"{name}.bias")
        if bias is not None:  # W_r c with c = mean_r - B mean_k
            within = tuple(range(1, w_gone.ndim - 1))
            lost, given = (each.sum(within) if within else each for each in (w_gone, added))
            sliced[f"{name}.bias"] = bias + lost @ mean[gone].to(dense) - given @ mean[kept].to(dense)


def _filter_norms(weight: Tensor) -> Tensor:
    """The Euclidean norm of every filter, (out,)."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)))
    return norms


def _restore_norm(sliced: dict[str, Tensor], wanted: Tensor, name: str, norm: str) -> None:
    new = sliced[f"{name}.weight"]
    got = _filter_norms(new)
    scale = torch.where(got > 0, (wanted / got.clamp(min=1e-12)).clamp(0.1, 10.0), 1.0)
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
    copied = with_tensors(model, scaled)
    with evaluating(copied):
        after = float_tensors(example.on(copied))
    return pairs if len(before) == len(after) and all(map(_nearly_equal, before, after)) else {}


def _nearly_equal(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape:  # boxes come in any number
        return False
    return before.numel() == 0 or torch.allclose(before, after, rtol=1e-2, atol=1e-2 * float(before.abs().max()))


@torch.no_grad()
def tracking_norms(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """The BatchNorms that keep statistics."""
    return [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Batch], task: Task = CLASSIFICATION) -> None:
    """Replace every BatchNorm's running statistics by plain averages over `batches`, in place.

    Dropout stays off; momenta and training modes are left as they were found. (EagleEye, Li et al. 2020,
    arXiv 2007.02491.)
    """
    norms = tracking_norms(model)
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
                if seen and len(call) == 1:  # one image has no variance where the network has one pixel left
                    continue
                seen += len(call)
                for norm in norms:
                    norm.momentum = len(call) / seen  # every example counts alike, in a short last batch too
                call.on(model)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

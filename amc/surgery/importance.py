"""Which coupled channels of a group matter most: criteria by name, or the user's own.

A criterion sees what one weight matrix or kernel holds of a group's coupled channels, and gives a number for each of
them. Its numbers are divided by their mean, so that every tensor counts alike, and averaged over the tensors that the
group touches (the group norm of DepGraph, Fang et al. 2023, arXiv 2301.12900, section 4.3, with any criterion in place
of the norm). Only the order inside a group has meaning.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.surgery.channel_table import ChannelTable, ranks
from amc.surgery.cutting import named_tensors
from amc.surgery.layers import CONVOLUTIONS, out_dim
from amc.system.errors import ModelError, UsageError
from amc.system.eval_mode import evaluating
from amc.system.factory import import_factory, one_line
from amc.zoo.data.splits import Batch
from amc.zoo.task import CLASSIFICATION, Task

EXAMPLES = 1024  # training examples behind gradients and activations: eight batches, seconds on a CPU


class Statistics:
    """What a criterion may need of the training data; nothing is run before it is read.

    Args:
        model: the dense network.
        batches: the training batches, anew at every call; about `EXAMPLES` examples.
        task: how a batch is given to the network, and its loss.
    """

    def __init__(self, model: nn.Module, batches: Callable[[], Iterable[Batch]], task: Task = CLASSIFICATION) -> None:
        self.model, self.batches, self.task = model, batches, task

    @cached_property
    def gradients(self) -> Mapping[str, Tensor]:
        """Gradient of the training loss by parameter, summed over `EXAMPLES`; of frozen parameters too.

        Raises:
            UsageError: the task has no loss of the network's outputs.
        """
        copied = copy.deepcopy(self.model).requires_grad_(True).eval()
        device = next(copied.parameters()).device
        for batch in self.batches():
            call = self.task.call(batch).to(device)
            loss = self.task.loss(call.on(copied), batch)
            if loss is None:
                raise UsageError("surgery.importance = taylor needs a loss; give --loss, or take magnitude")
            (loss * len(call) / EXAMPLES).backward()  # type: ignore[no-untyped-call]
        named = copied.named_parameters(remove_duplicate=False)
        return {name: tensor.grad for name, tensor in named if tensor.grad is not None}

    @cached_property
    def activations(self) -> Mapping[str, Tensor]:
        """Mean square of every input channel of every layer that ran, by layer name: (channels,) float64."""
        total: dict[str, Tensor] = {}
        count: Counter[str] = Counter()

        def note(name: str) -> Any:
            def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows = args[0].movedim(1, -1) if isinstance(layer, CONVOLUTIONS) else args[0]
                rows = rows.reshape(-1, rows.shape[-1])
                total[name] = total.get(name, 0) + rows.double().square().sum(0).cpu()
                count[name] += len(rows)

            return hook

        layers = [(n, m) for n, m in self.model.named_modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
        handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
        device = next(self.model.parameters()).device
        try:
            with evaluating(self.model), torch.no_grad():
                for batch in self.batches():
                    self.task.call(batch).to(device).on(self.model)
        finally:
            for handle in handles:
                handle.remove()
        return {name: square / count[name] for name, square in total.items()}


class Slices:
    """What one tensor of at least two dimensions holds of the n coupled channels of a group; float64, on the CPU.

    Attributes:
        weights: (n, m) the weights that leave with each channel.
    """

    def __init__(self, tensor: str, dim: int, chosen: Tensor, weight: Tensor, statistics: Statistics | None) -> None:
        self._tensor, self._dim, self._chosen, self._statistics = tensor, dim, chosen, statistics
        self._shape = weight.shape
        self.weights = self._sliced(weight)

    @property
    def gradients(self) -> Tensor:
        """(n, m) the training loss's gradient by each of the weights."""
        found = self._given().gradients.get(self._tensor)
        return self._sliced(torch.zeros(self._shape) if found is None else found)

    @property
    def activations(self) -> Tensor | None:
        """(n, k) mean squares of the k input features that belong to each channel; None where this is no layer's input.

        Inputs of a grouped convolution are those of its outputs' blocks, and none.
        """
        layer, _, own = self._tensor.rpartition(".")
        found = self._given().activations.get(layer) if own == "weight" else None
        module = self._given().model.get_submodule(layer)
        if found is None or self._dim != 1 - out_dim(module) or len(found) != self._shape[self._dim]:
            return None
        return found[self._chosen]

    def _sliced(self, tensor: Tensor) -> Tensor:
        rows = tensor.detach().to("cpu", torch.float64).transpose(0, self._dim).flatten(1)
        return rows[self._chosen.reshape(-1)].reshape(len(self._chosen), -1)

    def _given(self) -> Statistics:
        if self._statistics is None:
            raise UsageError("this criterion of importance needs training data, got none; take magnitude")
        return self._statistics


Criterion = Callable[[Slices], Tensor | None]
"""(n,) importance of the channels, larger is kept; None where this tensor says nothing of them."""


def magnitude(slices: Slices) -> Tensor:
    """Squared Euclidean norm of the weights (Li et al. 2017, arXiv 1608.08710, with the L2 norm)."""
    return slices.weights.square().sum(1)


def taylor(slices: Slices) -> Tensor:
    """|sum of weight x gradient|: the loss change to first order (Molchanov et al. 2019, arXiv 1906.10771)."""
    return (slices.weights * slices.gradients).sum(1).abs()


def lamp(slices: Slices) -> Tensor:
    """Layer-adaptive magnitude: a channel's squared norm over that of all channels at least as large.

    (Lee et al. 2021, arXiv 2010.07611, equation 4, with whole slices in place of single weights.)
    """
    squares = magnitude(slices)
    order = squares.argsort(stable=True)
    at_least = squares[order].flip(0).cumsum(0).flip(0).clamp(min=torch.finfo(torch.float64).tiny)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / at_least
    return scores


def geometric_median(slices: Slices) -> Tensor:
    """Sum of the distances to the other channels: what is near the geometric median is replaceable.

    (FPGM, He et al. 2019, arXiv 1811.00250, equation 7.)
    """
    return torch.cdist(slices.weights, slices.weights).sum(1)


def activation_norm(slices: Slices) -> Tensor | None:
    """Mean square of what the layers that read a channel get from it on training examples.

    (The feature-map norm among the criteria of Molchanov et al. 2017, arXiv 1611.06440, section 2.2.) Channels that no
    layer reads, such as the width of queries and keys, are ranked by magnitude.
    """
    found = slices.activations
    return None if found is None else found.sum(1)


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "taylor": taylor,
    "lamp": lamp,
    "geometric_median": geometric_median,
    "activation_norm": activation_norm,
}


def criterion_of(importance: str | Criterion) -> Criterion:
    """A criterion by its name in `CRITERIA`, by `package.module:function`, or as it is.

    Raises:
        ModelError: the function cannot be imported.
        UsageError: there is no criterion of this name.
    """
    if callable(importance):
        return importance
    if importance in CRITERIA:
        return CRITERIA[importance]
    if ":" in importance:
        return import_factory(importance, ModelError)
    known = ", ".join(CRITERIA)
    raise UsageError(f"importance must be {known} or package.module:function, but is {importance!r}")


def channel_scores(
    table: ChannelTable,
    tensors: Mapping[str, Tensor],
    criterion: Criterion = magnitude,
    statistics: Statistics | None = None,
) -> Tensor:
    """How much each coupled channel matters, (C,) float64: the criterion's numbers, averaged over tensors.

    Args:
        tensors: every parameter and buffer by name.
        statistics: for criteria that need training data.

    Raises:
        UsageError: the criterion needs what is not there, or does not give a number for each channel.
    """
    scores = torch.zeros(len(table.channel_group), dtype=torch.float64)
    counts = torch.zeros_like(scores)
    for members, slices in _slices(table, tensors, statistics):
        found = _checked(criterion, slices)
        if found is not None:
            scores[members] += found / found.mean().clamp(min=1e-30)
            counts[members] += 1
    if criterion is not magnitude and not counts.all():
        scores = torch.where(counts > 0, scores, channel_scores(table, tensors))
    return scores / counts.clamp(min=1)


def _slices(
    table: ChannelTable, tensors: Mapping[str, Tensor], statistics: Statistics | None
) -> Iterator[tuple[Tensor, Slices]]:
    """For every group in every dimension of every weight: its (n,) coupled channels, and what the weight holds of them.

    Channels of one group touch every dimension in equally many indices.
    """
    for name, axes in table.index_maps.items():
        if tensors[name].ndim < 2:
            continue
        for dim, index_map in ((dim, index_map) for dim, maps in axes.items() for index_map in maps):
            order = np.argsort(index_map, kind="stable")[int((index_map < 0).sum()) :]  # KEPT comes first
            groups = table.channel_group[index_map[order]]
            for group in np.unique(groups):
                inside = order[groups == group]
                members = np.unique(index_map[inside])
                chosen = torch.from_numpy(inside.reshape(len(members), -1))
                yield torch.from_numpy(members).long(), Slices(name, dim, chosen, tensors[name], statistics)


def _checked(criterion: Criterion, slices: Slices) -> Tensor | None:
    """A criterion's numbers, if they are some; the user's own may do anything."""
    name = getattr(criterion, "__name__", type(criterion).__name__)
    try:
        found: Any = criterion(slices)
        scores = None if found is None else torch.as_tensor(found, dtype=torch.float64).detach().cpu()
    except (UsageError, ModelError):
        raise
    except Exception as error:
        raise UsageError(f"the criterion {name} must give the importance of channels, but: {one_line(error)}") from None
    wanted = (len(slices.weights),)
    if scores is not None and (scores.shape != wanted or not bool((scores.isfinite() & (scores >= 0)).all())):
        raise UsageError(
            f"the criterion {name} must give {wanted[0]} finite numbers from 0 up, one for each channel, but gave "
            f"{tuple(scores.shape)}" + (" with others among them" if scores.shape == wanted else "")
        )
    return scores


def rank_channels(
    model: nn.Module, table: ChannelTable, importance: str | Criterion, statistics: Statistics | None = None
) -> NDArray[np.int32]:
    """(C,) the rank of each coupled channel inside its group, 0 for the one that is removed last.

    Args:
        importance: a name of `CRITERIA`, `package.module:function`, or a function of `Slices`.
    """
    return ranks(table, channel_scores(table, named_tensors(model), criterion_of(importance), statistics))

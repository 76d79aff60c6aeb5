"""Exact multiply-adds, parameters and bytes of every policy, from the dense network's shapes and the owner table.

What is counted: each convolution and linear layer, once per time it runs, on a batch of one picture; biases, BatchNorm,
activations and pooling are not (as in torch's flop counter, which counts 2 per multiply-add). Multiply-adds outside
convolution and linear layers (attention, say) are taken from torch's counter and added as a constant.

Every count is a sum of products of linear forms of the keep-counts, so it is exact at integers (float64 holds them to
2^53), differentiable between them, and computed for thousands of policies by two matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc.surgery.dependencies import CONVOLUTIONS, TRANSPOSED
from amc.surgery.table import KEPT, OwnerTable

FULL = 0  # the row of the axis matrix that stands for "a constant 1"


@dataclass(frozen=True)
class ProductCost:
    """Sum of terms coefficient x axis x axis, where an axis counts kept channels: `constant + policies @ channels.T`.

    Attributes:
        unit: "macs", "params" or "bytes".
        channels: (A, d) what one kept channel of each group adds to each axis.
        constant: (A,) what every policy keeps on it.
        terms: (T, 2) the two axes of each term.
        coefficients: (T,) the rest of each term.
    """

    unit: str
    channels: Tensor
    constant: Tensor
    terms: Tensor
    coefficients: Tensor

    def __call__(self, policies: Tensor) -> Tensor:
        """Keep-counts (b, d) float64 -> cost (b,) float64."""
        return self.by_term(policies).sum(-1)

    def by_term(self, policies: Tensor) -> Tensor:
        """Keep-counts (b, d) -> the cost of each term, (b, T)."""
        kept = policies.to(torch.float64) @ self.channels.T + self.constant
        return self.coefficients * kept[:, self.terms[:, 0]] * kept[:, self.terms[:, 1]]


class _Terms:
    """Collects terms; one row of the axis matrix per distinct owner array."""

    def __init__(self, table: OwnerTable) -> None:
        self.table = table
        self.granularity = np.array([group.granularity for group in table.groups])
        self.rows: list[NDArray[np.float64]] = [np.zeros(len(table.groups))]
        self.constants = [1.0]
        self.row_of: dict[int, int] = {}
        self.terms: list[tuple[int, int]] = []
        self.coefficients: list[float] = []

    def axis(self, owner: NDArray[np.int32] | None) -> int:
        """The row that counts the kept indices of one tensor dimension."""
        if owner is None:
            return FULL
        if id(owner) not in self.row_of:
            units = owner[owner != KEPT]
            per_group = np.bincount(self.table.unit_group[units], minlength=len(self.granularity))
            sizes = np.array([group.size for group in self.table.groups])
            self.row_of[id(owner)] = len(self.rows)
            self.rows.append(per_group / sizes)
            self.constants.append(float((owner == KEPT).sum()))
        return self.row_of[id(owner)]

    def add(self, coefficient: float, *owners: NDArray[np.int32] | None) -> None:
        first, second = [self.axis(owner) for owner in (*owners, None, None)[:2]]
        self.terms.append((first, second))
        self.coefficients.append(coefficient)

    def cost(self, unit: str) -> ProductCost:
        return ProductCost(
            unit,
            torch.from_numpy(np.stack(self.rows)),
            torch.tensor(self.constants, dtype=torch.float64),
            torch.tensor(self.terms),
            torch.tensor(self.coefficients, dtype=torch.float64),
        )


@dataclass(frozen=True)
class LayerRuns:
    """How often each layer's kernel is applied to one picture (output positions), and multiply-adds outside layers."""

    positions: dict[str, int]
    other_macs: int


def count_layer_runs(model: nn.Module, inputs: Tensor) -> LayerRuns:
    """Run `model` once on (1, C, H, W) `inputs`; its training mode is left as it was found."""
    positions: dict[str, int] = {}
    layers = 0

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal layers
            if isinstance(module, TRANSPOSED):
                places = args[0].numel() // module.in_channels
            else:
                width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
                places = output.numel() // int(width)  # type: ignore[arg-type]
            positions[name] = positions.get(name, 0) + places
            layers += places * module.weight.numel()  # type: ignore[operator]

        return hook

    modes = {name: module.training for name, module in model.named_modules()}
    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    ]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for name, module in model.named_modules():
            module.training = modes[name]
    return LayerRuns(positions, max(0, counter.get_total_flops() // 2 - layers))


def count_macs(model: nn.Module, table: OwnerTable, runs: LayerRuns) -> ProductCost:
    """Multiply-adds of one picture; one term a layer, in the order of `runs.positions`, then the constant rest."""
    terms = _Terms(table)
    for name, places in runs.positions.items():
        owners = table.owners.get(f"{name}.weight", {})
        weight = model.get_submodule(name).weight
        rest = weight.numel()  # type: ignore[operator]
        for dim in owners:
            rest //= weight.shape[dim]  # type: ignore[index]
        terms.add(float(places * rest), *owners.values())
    terms.add(float(runs.other_macs))
    return terms.cost("macs")


def count_params(model: nn.Module, table: OwnerTable) -> ProductCost:
    """Trainable and frozen parameters, a shared one counted once."""
    return _count_tensors(dict(model.named_parameters()), table, "params")


def count_bytes(model: nn.Module, table: OwnerTable) -> ProductCost:
    """Bytes of all parameters and buffers, as they stand in the released weights file without its header."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stored = model.state_dict(keep_vars=True)
    return _count_tensors({name: tensor for name, tensor in tensors.items() if name in stored}, table, "bytes")


def _count_tensors(tensors: dict[str, Tensor], table: OwnerTable, unit: str) -> ProductCost:
    terms = _Terms(table)
    for name, tensor in tensors.items():
        owners = table.owners.get(name, {})
        rest = tensor.numel() * (tensor.element_size() if unit == "bytes" else 1)
        for dim in owners:
            rest //= tensor.shape[dim]
        terms.add(float(rest), *owners.values())
    return terms.cost(unit)


def count_cut_macs(model: nn.Module, inputs: Tensor) -> int:
    """Multiply-adds of a network as torch's own counter sees them (it counts 2 each), for one picture."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(inputs)
    return counter.get_total_flops() // 2

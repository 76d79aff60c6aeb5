"""Exact multiply-adds, parameters and bytes of every policy, from the dense network's shapes and the index_map table.

What is counted: each convolution and each product of matrices (linear layers, attention), once per time it runs, on a
batch of one; biases, BatchNorm, activations and pooling are not (as in torch's flop counter, which counts 2 per
multiply-add).

Every count is a sum of products of linear forms of the keep-counts, so it is exact at integers (float64 holds them to
2^53), differentiable between them, and computed for thousands of policies by two matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.surgery.channel_table import ChannelTable, IndexMaps
from amc.surgery.coupled_channels import KEPT

FULL = 0  # the row of the axis matrix that stands for "a constant 1"
Monomial = tuple[float, tuple[int, ...]]  # times, and the rows that are multiplied


@dataclass(frozen=True)
class ProductCost:
    """Sum of terms coefficient x axis x ..., where an axis counts kept channels: `constant + policies @ channels.T`.

    Attributes:
        unit: "macs", "params" or "bytes".
        channels: (A, d) what one kept channel of each group adds to each axis.
        constant: (A,) what every policy keeps on it.
        terms: (T, factors) the axes of each term.
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
        return self.coefficients * kept[:, self.terms].prod(-1)


class _Terms:
    """Collects terms; one row of the axis matrix per distinct index map, one more where two arrays share an axis."""

    def __init__(self, table: ChannelTable) -> None:
        self.table = table
        self.sizes = np.array([group.size for group in table.groups])
        self.units = np.bincount(table.channel_group, minlength=len(table.groups))
        self.rows: list[NDArray[np.float64]] = [np.zeros(len(table.groups))]
        self.constants = [1.0]
        self.polynomials: dict[tuple[int, ...], list[Monomial]] = {}
        self.row_of: dict[bytes, int] = {}
        self.terms: list[tuple[int, ...]] = []
        self.coefficients: list[float] = []

    def axis(self, index_maps: IndexMaps) -> list[Monomial]:
        """The kept indices of one axis, counted: a sum of products of rows."""
        key = tuple(map(id, index_maps))
        if key not in self.polynomials:
            self.polynomials[key] = (
                [(1.0, (self._linear(index_maps[0]),))] if len(index_maps) == 1 else self._joint(*index_maps)
            )
        return self.polynomials[key]

    def _linear(self, index_map: NDArray[np.int32]) -> int:
        per_group = np.bincount(self.table.channel_group[index_map[index_map != KEPT]], minlength=len(self.sizes))
        return self._row(per_group / self.sizes, float((index_map == KEPT).sum()))

    def _joint(self, first: NDArray[np.int32], second: NDArray[np.int32]) -> list[Monomial]:
        """Indices that two units own are kept if both are: heads times width, plus what has one index_map or none."""
        both = (first != KEPT) & (second != KEPT)
        single = np.where(first[~both] != KEPT, first[~both], second[~both])
        found: list[Monomial] = [(1.0, (self._linear(single),))] if len(single) else []
        pairs = np.stack([self.table.channel_group[first[both]], self.table.channel_group[second[both]]])
        for left, right in np.unique(pairs, axis=1).T:
            times = (pairs == [[left], [right]]).all(0).sum() / (self.units[left] * self.units[right])
            found.append((float(times), (self._kept_units(left), self._kept_units(right))))
        return found

    def _kept_units(self, group: int) -> int:
        share = np.zeros(len(self.sizes))
        share[group] = self.units[group] / self.sizes[group]
        return self._row(share, 0.0)

    def _row(self, channels: NDArray[np.float64], constant: float) -> int:
        key = channels.tobytes() + np.float64(constant).tobytes()
        if key not in self.row_of:
            self.row_of[key] = len(self.rows)
            self.rows.append(channels)
            self.constants.append(constant)
        return self.row_of[key]

    def add(self, coefficient: float, *axes: IndexMaps) -> int:
        """Add coefficient x axis x axis x ...; returns how many terms that takes."""
        expanded = list(product(*(self.axis(index_maps) for index_maps in axes)))
        for monomials in expanded:
            self.terms.append(tuple(row for _, rows in monomials for row in rows))
            self.coefficients.append(coefficient * math.prod(times for times, _ in monomials))
        return len(expanded)

    def cost(self, unit: str) -> ProductCost:
        widest = max((len(rows) for rows in self.terms), default=0) or 1
        return ProductCost(
            unit,
            torch.from_numpy(np.stack(self.rows)),
            torch.tensor(self.constants, dtype=torch.float64),
            torch.tensor([[*rows, *[FULL] * (widest - len(rows))] for rows in self.terms]),
            torch.tensor(self.coefficients, dtype=torch.float64),
        )


def count_macs(table: ChannelTable) -> ProductCost:
    """Multiply-adds of one example: every multiplication of two tensors that the trace saw."""
    terms = _Terms(table)
    for found in table.products:
        terms.add(float(found.macs), *found.axes)
    return terms.cost("macs")


def macs_by_module(table: ChannelTable, policies: Tensor) -> dict[str, Tensor]:
    """Module name -> multiply-adds of each of (b, d) policies in it, (b,), in the order modules first ran."""
    terms, modules = _Terms(table), []
    for found in table.products:
        modules += [found.module] * terms.add(float(found.macs), *found.axes)
    counted = terms.cost("macs").by_term(policies)
    summed: dict[str, Tensor] = {}
    for module, column in zip(modules, counted.T, strict=True):
        summed[module] = summed.get(module, 0) + column
    return summed


def count_params(model: nn.Module, table: ChannelTable) -> ProductCost:
    """Trainable and frozen parameters, a shared one counted once."""
    return _count_tensors(dict(model.named_parameters()), table, "params")


def count_bytes(model: nn.Module, table: ChannelTable) -> ProductCost:
    """Bytes of all parameters and buffers, as they stand in the released weights file without its header."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stored = model.state_dict(keep_vars=True)
    return _count_tensors({name: tensor for name, tensor in tensors.items() if name in stored}, table, "bytes")


def _count_tensors(tensors: dict[str, Tensor], table: ChannelTable, unit: str) -> ProductCost:
    terms = _Terms(table)
    for name, tensor in tensors.items():
        index_maps = table.index_maps.get(name, {})
        rest = tensor.numel() * (tensor.element_size() if unit == "bytes" else 1)
        for dim in index_maps:
            rest //= tensor.shape[dim]
        terms.add(float(rest), *index_maps.values())
    return terms.cost(unit)

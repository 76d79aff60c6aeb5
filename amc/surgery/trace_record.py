"""What a trace finds: slots, and how they hang together.

A slot is one index of one dimension of a parameter, or of an intermediate result that has a life of its own. The labels
of a tensor say which slot each index of its dimensions stands for; running the network passes labels on, and every
operation adds to the record which slots can only be removed together, and which not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amc.surgery.narrow_norm import NormRule

Axis = tuple[str, int]  # the name of a parameter or buffer, and one of its dimensions
Slots = NDArray[np.int64]
NONE = -1  # an index that stands for no slot and always stays


@dataclass(frozen=True)
class Factor:
    """Slots that one dimension of a tensor, or several jointly, stand for.

    Attributes:
        dims: the dimensions, rising.
        slots: one slot for every combination of their indices; its shape is their sizes.
    """

    dims: tuple[int, ...]
    slots: Slots

    def first(self, dim: int) -> Slots:
        """(size of `dim`, rest): the slots of each index of one dimension."""
        return np.moveaxis(self.slots, self.dims.index(dim), 0).reshape(self.slots.shape[self.dims.index(dim)], -1)

    def moved(self, places: Mapping[int, int]) -> Factor:
        """The same slots under other dimension numbers."""
        dims = [places[dim] for dim in self.dims]
        order = sorted(range(len(dims)), key=dims.__getitem__)
        return Factor(tuple(dims[i] for i in order), self.slots.transpose(order))


@dataclass(frozen=True)
class Labels:
    """What is known of a tensor.

    Attributes:
        factors: of its labelled dimensions, none in two factors.
        pliant: made from sizes alone (zeros, a range, a mask), so it follows whatever the sizes become.
        parametric: computed from parameters alone.
    """

    factors: tuple[Factor, ...] = ()
    pliant: bool = False
    parametric: bool = False

    def factor(self, dim: int) -> Factor | None:
        return next((factor for factor in self.factors if dim in factor.dims), None)


@dataclass(frozen=True)
class Product:
    """Multiply-adds: `macs` per combination of kept entries of the arrays in `axes`."""

    module: str
    macs: int
    axes: tuple[Slots, ...]


@dataclass(frozen=True)
class Sized:
    """A size that a module's code requested: `slots` (size, rest) of the dimension that came out so."""

    module: str
    slots: Slots


@dataclass(frozen=True)
class TracedRequest:
    """A call by which a module's own code requests sizes, or scales by a number.

    Attributes:
        site: where in the code it stands, as `shape_patches.call_site`.
        turn: how often that site had been reached before in the same forward.
        sizes: for each size requested, the slots (size, rest) of the dimension that came out, None where it has none.
        factor: for a call that scales: what the dense network scales by.
    """

    module: str
    site: str
    turn: int
    sizes: tuple[Slots | None, ...]
    factor: float | None


@dataclass
class Operand:
    """A tensor over the index space of an operation: sizes[i] is 0 where it has no index i."""

    factors: Sequence[Factor]
    sizes: Sequence[int]
    pliant: bool = False


@dataclass
class TraceRecord:
    """Everything a trace found.

    Attributes:
        axes: the first slot and the length of every labelled dimension of every parameter and buffer.
        pairs: slots that are removed together, two arrays of one length each.
        kept: slots that stay, with the reason.
        grids: arrays of slots that stood in several dimensions at once: what is left must again be a full array.
        fixed: (n, rest) slots of a dimension whose length cannot change, with the reason.
        projections: (n, rest) slots, and (n,) slots each of which leaves exactly when its whole row does.
        normed: modules that normalise over slots, name -> slots; `rules` says how.
        produced, read: slots of weights' output and input dimensions.
    """

    axes: dict[Axis, tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    pairs: list[tuple[Slots, Slots]] = field(default_factory=list)
    kept: list[tuple[Slots, str]] = field(default_factory=list)
    grids: list[Slots] = field(default_factory=list)
    fixed: list[tuple[Slots, str]] = field(default_factory=list)
    projections: list[tuple[Slots, Slots]] = field(default_factory=list)
    normed: dict[str, Slots] = field(default_factory=dict)
    rules: dict[str, NormRule] = field(default_factory=dict)
    produced: list[Slots] = field(default_factory=list)
    read: list[Slots] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    sized: list[Sized] = field(default_factory=list)
    requests: list[TracedRequest] = field(default_factory=list)
    inputs: dict[str, Slots] = field(default_factory=dict)

    def axis(self, name: str, dim: int, length: int) -> Slots:
        """New slots for one dimension of a parameter or buffer."""
        self.axes[name, dim] = (self.total, length)
        return self.fresh(length)

    def fresh(self, count: int) -> Slots:
        """New slots, (count,)."""
        self.total += count
        return np.arange(self.total - count, self.total)

    def join(self, left: Slots, right: Slots) -> None:
        """Slots at the same index of two arrays leave together."""
        a, b = np.broadcast_arrays(left, right)
        a, b = a.reshape(-1), b.reshape(-1)
        both = (a != NONE) & (b != NONE)
        if (both & (a != b)).any():
            self.pairs.append((a[both], b[both]))
        for one in (a[~both], b[~both]):
            self.keep(one, "it meets channels that stay")

    def keep(self, slots: Slots, reason: str) -> None:
        stay = slots[slots != NONE]
        if stay.size:
            self.kept.append((stay.reshape(-1), reason))

    def fix(self, factor: Factor, dim: int, reason: str) -> None:
        """The length of one dimension cannot change."""
        if len(factor.dims) == 1:
            self.keep(factor.slots, reason)
        else:
            self.fixed.append((factor.first(dim), reason))

    def fix_all(self, labels: Labels, dims: Iterable[int], reason: str) -> None:
        for dim in dims:
            if (factor := labels.factor(dim)) is not None:
                self.fix(factor, dim, reason)

    def project(self, factor: Factor, dims: Sequence[int]) -> Factor:
        """New slots for some dimensions of a factor; each leaves when all it stands for leave."""
        if len(dims) > 1:  # several at once: what they stand for must leave together
            rest = [axis for axis, dim in enumerate(factor.dims) if dim not in dims]
            joint = np.moveaxis(factor.slots, rest, range(-len(rest), 0)).reshape(
                *(size for size, dim in zip(factor.slots.shape, factor.dims, strict=True) if dim in dims), -1
            )
            self.join(joint[..., :1], joint)
            return Factor(tuple(dim for dim in factor.dims if dim in dims), joint[..., 0])
        rows = factor.first(dims[0])
        _, row = np.unique(rows, axis=0, return_inverse=True)
        small = self.fresh(int(row.max()) + 1)
        firsts = np.unique(row, return_index=True)[1]
        self.projections.append((rows[firsts], small))
        return Factor((dims[0],), small[row.reshape(-1)])

    def couple(self, operands: Sequence[Operand], where: str) -> list[Factor]:
        """Operands over one index space meet entry by entry; the factors of what comes out.

        Args:
            operands: their factors' dims are index numbers.
            where: the operation and module, for reasons.
        """
        self._meet_free(operands, where)
        merged: list[Factor] = []
        for operand in operands:
            for factor in operand.factors:
                merged = self._merge(merged, factor, where)
        return merged

    def _meet_free(self, operands: Sequence[Operand], where: str) -> None:
        """A dimension that is labelled in one operand and has a size of its own in another cannot change."""
        for index in range(len(operands[0].sizes)):
            free = any(
                operand.sizes[index] > 1 and not operand.pliant and not _holds(operand.factors, index)
                for operand in operands
            )
            for operand in operands:
                for factor in operand.factors:
                    if free and index in factor.dims:
                        self.fix(factor, index, f"it meets a fixed size in {where}")

    def _merge(self, merged: list[Factor], factor: Factor, where: str) -> list[Factor]:
        touched = [other for other in merged if set(other.dims) & set(factor.dims)]
        apart = [other for other in merged if not set(other.dims) & set(factor.dims)]
        if not touched:
            return [*merged, factor]
        if all(set(other.dims) <= set(factor.dims) for other in touched):
            for other in touched:
                small = factor if other.dims == factor.dims else self.project(factor, other.dims)
                self.join(small.slots, other.slots)
            return [*apart, factor]
        if len(touched) == 1 and set(factor.dims) <= set(touched[0].dims):
            self.join(self.project(touched[0], factor.dims).slots, factor.slots)
            return merged
        for other in touched:
            common = sorted(set(other.dims) & set(factor.dims))
            self.join(self.project(other, common).slots, self.project(factor, common).slots)
            for dim in set(factor.dims) - set(common):
                self.fix(factor, dim, f"it cannot be followed through {where}")
        return merged

    def contract(
        self, operands: Sequence[Operand], parametric: Sequence[bool], summed: Sequence[int], where: str, module: str
    ) -> list[Factor]:
        """Two operands multiplied entry by entry and summed over some indices; the factors of what is left."""
        merged = self.couple(operands, where)
        covered = {dim for factor in merged for dim in factor.dims}
        sizes = [max(operand.sizes[index] for operand in operands) for index in range(len(operands[0].sizes))]
        free = math.prod(size or 1 for index, size in enumerate(sizes) if index not in covered)
        self.products.append(Product(module, free, tuple(factor.slots for factor in merged)))
        if sum(parametric) == 1:
            for factor in operands[parametric.index(True)].factors:
                if set(factor.dims) <= set(summed):
                    self.read.append(factor.slots.reshape(-1))
                elif not set(factor.dims) & set(summed):
                    self.produced.append(factor.slots.reshape(-1))
        return [left for factor in merged if (left := self._summed(factor, summed)) is not None]

    def _summed(self, factor: Factor, summed: Sequence[int]) -> Factor | None:
        left = [dim for dim in factor.dims if dim not in summed]
        if len(left) == len(factor.dims):
            return factor
        return self.project(factor, left) if left else None


def _holds(factors: Iterable[Factor], dim: int) -> bool:
    return any(dim in factor.dims for factor in factors)

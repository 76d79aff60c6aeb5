"""The owner table of a network, proved: what a cut computes is what the dense network computes with zeros there.

Groups whose cut fails, or computes something else, are frozen with the reason. Groups that may leave whole, because
the answer still depends on the input without them, are told by trying.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from amc.call import Call, float_tensors
from amc.errors import ModelError
from amc.surgery.cut import Kept, cut, mask
from amc.surgery.table import OwnerTable, build_table, kept_units, ranks
from amc.surgery.tracing import trace

TOLERANCE = 1e-3  # of the largest output; float32, and another order of summation


def proved_table(model: nn.Module, example: Call, ignore: Sequence[str] = (), round_to: int = 8) -> OwnerTable:
    """Trace `model` on `example`, a batch of one, and prove every group by cutting it.

    Raises:
        ModelError: the network cannot be traced, or nothing in it can be cut.
    """
    table = build_table(model, trace(model, example, ignore), round_to)
    judge = _Judge(model, example)
    table = _without_faults(judge, table)
    return table.with_removable(_removable(judge, table))


class _Judge:
    """Cuts a network whose untrained parameters were drawn at random, so that no fault hides behind a zero."""

    def __init__(self, model: nn.Module, example: Call) -> None:
        self.model = _drawn(model)
        self.example, self.other = example, _other_input(example)

    @torch.no_grad()
    def fault(self, table: OwnerTable, groups: Sequence[int], keep_none: Sequence[int] = ()) -> str | None:
        """Why some groups cannot be cut to uneven widths, or others to nothing; None if they can."""
        kept = self._kept(table, groups, keep_none)
        try:
            small = cut(self.model, table, kept)
            ours, zeroed = (float_tensors(self.example.on(net)) for net in (small, mask(self.model, table, kept)))
            if keep_none and self.other is not None:
                theirs = float_tensors(self.other.on(small))
        except Exception as error:  # whatever a network may raise when its shapes do not meet
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"cutting it fails: {first[:120]}"
        for left, right in zip(ours, zeroed, strict=True):
            if left.shape != right.shape:
                return f"cutting it changes the output's shape from {tuple(right.shape)} to {tuple(left.shape)}"
            difference = float((left - right).abs().max()) if left.numel() else 0.0
            if not difference <= TOLERANCE * max(float(right.abs().max()) if right.numel() else 0.0, 1e-12):
                return f"cutting it is not the same as zeroing it (outputs differ by {difference:.2g})"
        if keep_none and (self.other is None or not _differ(ours, theirs)):
            return "without it the output does not depend on the input"
        return None

    def _kept(self, table: OwnerTable, groups: Sequence[int], keep_none: Sequence[int]) -> Kept:
        """A random choice of units, whatever their rank."""
        rng, space = np.random.default_rng(0), table.space
        drawn = space.nearest(space.high * rng.uniform(0.25, 0.75, len(space)))
        policy = space.high.copy()
        policy[list(groups)] = np.maximum(drawn, space.step)[list(groups)]
        policy[list(keep_none)] = 0
        return kept_units(table, ranks(table, torch.from_numpy(rng.random(len(table.unit_group)))), policy)


def _without_faults(judge: _Judge, table: OwnerTable) -> OwnerTable:
    """Freeze the fewest groups: halves that hold a fault are divided until it stands alone."""
    wrong: dict[str, str] = {}
    sound: list[int] = []  # all of these can be cut together

    def search(groups: Sequence[int]) -> None:
        reason = judge.fault(table, [*sound, *groups])
        if reason is None:
            sound.extend(groups)
        elif len(groups) == 1:
            wrong[table.groups[groups[0]].name] = reason
        else:
            search(groups[: len(groups) // 2])
            search(groups[len(groups) // 2 :])

    search(range(len(table.groups)))
    if not sound:
        name, reason = next(iter(wrong.items()))
        raise ModelError(
            f"a network must have channels that can be cut, but has none that can: {name}: {reason}; "
            "name layers at fault in `ignore`"
        )
    return table.without(wrong) if wrong else table


def _removable(judge: _Judge, table: OwnerTable) -> list[bool]:
    """Which groups may keep nothing, all of them together too."""
    gone: list[int] = []

    def search(groups: Sequence[int]) -> None:
        if judge.fault(table, [], [*gone, *groups]) is None:
            gone.extend(groups)
        elif len(groups) > 1:
            search(groups[: len(groups) // 2])
            search(groups[len(groups) // 2 :])

    if judge.other is not None:
        search(range(len(table.groups)))
    return [group in gone for group in range(len(table.groups))]


@torch.no_grad()
def _drawn(model: nn.Module) -> nn.Module:
    """A copy in `eval` mode; tensors that are all one value, as before training, are drawn at random."""
    twin = copy.deepcopy(model).eval()
    draw = torch.Generator().manual_seed(0)
    for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
            continue
        spread = torch.rand(tensor.shape, generator=draw).to(tensor)
        if name.endswith(("bias", "running_mean")):
            tensor.copy_(0.4 * spread - 0.2)
        elif tensor.numel() == max(tensor.shape):
            tensor.copy_(0.5 + spread)
        else:
            tensor.copy_((2 * spread - 1) * (3 / tensor[0].numel()) ** 0.5)
    return twin


def _other_input(example: Call) -> Call | None:
    """The same call with other numbers, None if nothing in it is a real number."""
    draw = torch.Generator().manual_seed(1)
    if not float_tensors((example.args, dict(example.kwargs))):
        return None

    def redrawn(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.rand(leaf.shape, generator=draw).to(leaf)
        return leaf

    return Call(tree_map(redrawn, example.args), tree_map(redrawn, dict(example.kwargs)))


def _differ(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether answers to two inputs differ at all: what no input reaches is the same to the last bit."""
    return len(left) != len(right) or not all(map(torch.equal, left, right))

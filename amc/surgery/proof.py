"""The channel table of a network, proved: a cut network computes what the dense one does with zeros there.

Groups whose cut fails, or computes something else, are frozen with the reason. Which groups may leave whole, because
the output still depends on the input without them, is found by trying.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from amc.surgery.channel_table import ChannelTable, Group, ShapeRequest, build_table, kept_channels, ranks
from amc.surgery.cutting import Kept, cut_channels, stays, zero_channels
from amc.surgery.flop_counter import count_cut_macs
from amc.surgery.random_parameters import normalise_activations, with_random_constants
from amc.surgery.tracer import trace
from amc.system.errors import ModelError
from amc.zoo.call import Call, float_tensors

TOLERANCE = 2e-5  # of the largest output; float32, and another order of summation
DOUBTFUL = 1e-2  # up to here float64 decides
EXACT = 1e-8
DRAWS = 4  # widths around a half; each at one of its ends; all at the smallest; all but heads and their widths there


def proved_table(model: nn.Module, example: Call, ignore: Sequence[str] = (), round_to: int = 8) -> ChannelTable:
    """Trace `model` on `example`, a batch of one, and prove every group by cutting it.

    Raises:
        ModelError: the network cannot be traced, or nothing in it can be cut.
    """
    table = build_table(model, trace(model, example, ignore), round_to)
    judge = _Judge(model, example)
    plain = replace(table, shape_requests=())
    draws = range(DRAWS if any(map(_is_joint, table.groups)) else DRAWS - 1)
    if all(judge.fault(plain, range(len(table.groups)), draw=draw) is None for draw in draws):
        table = plain  # the modules' own integers do
    else:
        for draw in draws:
            table = _without_faults(judge, table, draw)
        table = replace(table, shape_requests=judge.needed(table))
    return table.with_removable(_removable(judge, table))


def _is_joint(group: Group) -> bool:
    """Heads, or their width."""
    return ":" in group.name


class _Unequal(Exception):
    """Outputs of different shapes."""


class _Judge:
    """Cuts a network whose untrained parameters were drawn at random, so that no fault hides behind a zero."""

    def __init__(self, model: nn.Module, example: Call) -> None:
        self.model = _settled(model, example)
        self.example, self.other = example, _other_input(example)

    @torch.no_grad()
    def fault(
        self, table: ChannelTable, groups: Sequence[int], keep_none: Sequence[int] = (), draw: int = 0
    ) -> str | None:
        """Why some groups cannot be cut to uneven widths, or others to nothing; None if they can."""
        kept = self._kept(table, groups, keep_none, draw)
        try:
            difference, small, outputs = self._compare(self.model, self.example, table, kept)
            if TOLERANCE < difference <= DOUBTFUL:
                copied = copy.deepcopy(self.model).double()
                difference = self._compare(copied, _doubled(self.example), table, kept)[0] * TOLERANCE / EXACT
            others = float_tensors(self.other.on(small)) if keep_none else outputs
        except _Unequal as error:
            return str(error)
        except Exception as error:  # whatever a network may raise when its shapes do not meet
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"cutting it fails: {first[:120]}"
        if not difference <= TOLERANCE:
            return f"cutting it is not the same as zeroing it (outputs differ by {difference:.1g} of the largest)"
        if keep_none and not _differ(outputs, others):
            return "without it the output does not depend on the input"
        if keep_none and count_cut_macs(small, self.example) != _macs_left(table, kept):
            return "without it what is left costs less than the table says"
        return None

    def _compare(
        self, model: nn.Module, example: Call, table: ChannelTable, kept: Kept
    ) -> tuple[float, nn.Module, list[Tensor]]:
        """How far a cut network is from the one with zeros, as a share of the largest output; it and its outputs."""
        small = cut_channels(model, table, kept)
        worst = 0.0
        outputs = float_tensors(example.on(small))
        for ours, zeroed in zip(outputs, float_tensors(example.on(zero_channels(model, table, kept))), strict=True):
            if ours.shape != zeroed.shape:
                raise _Unequal(f"cutting it changes the output from {tuple(zeroed.shape)} to {tuple(ours.shape)}")
            if ours.numel():
                share = float((ours - zeroed).abs().max()) / max(float(zeroed.abs().max()), 1e-12)
                worst = max(worst, share) if share == share else float("nan")
        return worst, small, outputs

    @torch.no_grad()
    def needed(self, table: ChannelTable) -> tuple[ShapeRequest, ...]:
        """The requests of modules that ask for a wrong size when everything is cut."""
        small = cut_channels(self.model, table, self._kept(table, range(len(table.groups)), (), 0))
        try:
            self.example.on(small)
        except Exception:
            return table.shape_requests
        wrong = {name for name, module in small.named_modules() if "patched" in vars(module)}
        return tuple(call for call in table.shape_requests if call.module in wrong)

    def _kept(self, table: ChannelTable, groups: Sequence[int], keep_none: Sequence[int], draw: int) -> Kept:
        """A random choice of coupled channels, whatever their rank."""
        rng, space = np.random.default_rng(draw), table.space
        widths = space.nearest(space.high * rng.uniform(0.25, 0.75, len(space)), space.step)
        if draw == 1:
            widths = np.where(rng.random(len(space)) < 0.5, space.step, space.high)
        elif draw == 2:
            widths = space.step
        elif draw == 3:  # code may divide the width of a stream by the number of heads
            widths = np.where([_is_joint(group) for group in table.groups], space.high, space.step)
        policy = space.high.copy()
        policy[list(groups)] = widths[list(groups)]
        policy[list(keep_none)] = 0
        return kept_channels(table, ranks(table, torch.from_numpy(rng.random(len(table.channel_group)))), policy)


def _macs_left(table: ChannelTable, kept: Kept) -> int:
    """Multiply-adds of what is left, by the table."""
    keep = np.append(kept, True)
    left = [[int(stays(maps, keep).sum()) for maps in product.axes] for product in table.products]
    return sum(product.macs * math.prod(sizes) for product, sizes in zip(table.products, left, strict=True))


def _without_faults(judge: _Judge, table: ChannelTable, draw: int) -> ChannelTable:
    """Freeze the fewest groups: halves that hold a fault are divided until it stands alone."""
    wrong: dict[str, str] = {}
    sound: list[int] = []  # all of these can be cut together

    def search(groups: Sequence[int]) -> None:
        nonlocal table
        reason = judge.fault(table, [*sound, *groups], draw=draw)
        if reason is None:
            sound.extend(groups)
        elif len(groups) > 1:
            search(groups[: len(groups) // 2])
            search(groups[len(groups) // 2 :])
        elif (coarser := _coarser(judge, table, sound, groups[0], draw)) is not None:
            table = coarser
            sound.extend(groups)
        else:
            wrong[table.groups[groups[0]].name] = reason

    search(_alike_together(table))
    if not sound:
        name, reason = next(iter(wrong.items()))
        raise ModelError(
            f"a network must have channels that can be cut, but has none that can: {name}: {reason}; "
            "name layers at fault in `ignore`"
        )
    return table.without(wrong) if wrong else table


def _coarser(judge: _Judge, table: ChannelTable, sound: Sequence[int], group: int, draw: int) -> ChannelTable | None:
    """The table with a larger step for one group, if that is what its smallest widths want: a channel a head, say."""
    step, size = 2 * table.groups[group].step, table.groups[group].size
    while draw > 0 and step < size:
        if size % step == 0:
            tried = table.with_step(group, step)
            if judge.fault(tried, [*sound, group], draw=draw) is None:
                return tried
        step *= 2
    return None


def _alike_together(table: ChannelTable) -> list[int]:
    """Groups in an order that puts streams, heads and widths side by side: they tend to fail together."""
    kinds = [group.name.partition(":")[2].partition("#")[0] for group in table.groups]
    return sorted(range(len(kinds)), key=lambda g: (kinds[g], len(table.groups[g].layers)))


def _removable(judge: _Judge, table: ChannelTable) -> list[bool]:
    """Which groups may keep nothing, all of them together too."""
    gone: list[int] = []

    def search(groups: Sequence[int]) -> None:
        if judge.fault(table, [], [*gone, *groups]) is None:
            gone.extend(groups)
        elif len(groups) > 1:
            search(groups[: len(groups) // 2])
            search(groups[len(groups) // 2 :])

    # heads without width are the same as no heads
    search([g for g in _alike_together(table) if ":width" not in table.groups[g].name])
    return [group in gone for group in range(len(table.groups))]


def _doubled(example: Call) -> Call:
    return example.mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@torch.no_grad()
def _settled(model: nn.Module, example: Call) -> nn.Module:
    """A copy with drawn parameters in which the input is felt to the last layer, if it can be made so."""
    settled = normalise_activations(with_random_constants(model), example)
    finite = all(bool(output.isfinite().all()) for output in float_tensors(example.on(settled)))
    return settled if finite else with_random_constants(model)


def _other_input(example: Call) -> Call:
    """The same call with other numbers; with its whole numbers in another order where none in it are real."""
    draw = torch.Generator().manual_seed(1)
    if float_tensors((example.args, dict(example.kwargs))):
        return example.mapped(
            lambda tensor: torch.rand(tensor.shape, generator=draw).to(tensor) if tensor.is_floating_point() else tensor
        )

    def shuffled(tensor: Tensor) -> Tensor:
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=draw)].view(tensor.shape)

    return example.mapped(shuffled)


def _differ(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether outputs for two inputs differ at all: what no input reaches is the same to the last bit."""
    return len(left) != len(right) or not all(map(torch.equal, left, right))

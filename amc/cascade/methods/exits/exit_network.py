"""A classifier with exits on its way: consecutive segments, and a head behind each but the last.

Any network that `amc.cascade.methods.exits.segments` can cut, dense or pruned, or one that has exits of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.cascade.methods.exits.heads import HeadShape, head_of
from amc.cascade.methods.exits.segments import Cuttable
from amc.cascade.stages.stage import ExitStage, StageCost
from amc.surgery.flop_counter import count_cut_macs
from amc.system.errors import ModelError, UsageError
from amc.train.own_exits import OwnExits
from amc.zoo.call import Call

EXITS, HIDDEN = 3, 128
OWN = "own"  # where exits stand in a network that has them itself


@dataclass(frozen=True)
class Place:
    """Where an exit stands, and what answers there.

    Attributes:
        name: of the operation behind which it stands, or `own:INDEX` in a network with exits of its own.
        macs: multiply-adds of one example up to there.
        head: None where the network has its own.
    """

    name: str
    macs: int
    head: HeadShape | None


class ExitNetwork(nn.Module):
    """K exits on the way through a network: K + 1 segments, K heads.

    Segments hold the modules of `backbone` itself: to train one is to train the other. `forward` is the network without
    its exits.

    Attributes:
        backbone: the network that was cut, for its tensors' names; its parameters are those of the segments.
        places: of the K exits.
        input_shape: of one example.
        joint: whether the backbone was trained with the exits, and is no longer what it was.
    """

    backbone: nn.Module

    def __init__(
        self,
        backbone: nn.Module,
        segments: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        places: Sequence[Place],
        example: Tensor,
        chain: str = "network",
    ) -> None:
        super().__init__()
        self.segments, self.heads = nn.ModuleList(segments), nn.ModuleList(heads)
        self.__dict__["backbone"] = backbone  # no second name for each tensor
        self.places, self.chain, self.joint = tuple(places), chain, False
        self.input_shape, self.input_dtype = tuple(example.shape[1:]), example.dtype
        self.costs = self._count(example[:1])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stages: the exits, then the network itself."""
        return (*(f"{self.chain}.exit{index + 1}" for index in range(len(self.heads))), self.chain)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Any = inputs
        for segment in self.segments:
            features = segment(features)
        logits: Tensor = features
        return logits

    def outputs(self, inputs: Tensor) -> list[Tensor]:
        """Logits (b, classes) of every stage, the deepest last."""
        features: Any = inputs
        logits = []
        for segment, head in zip(self.segments, [*self.heads, nn.Identity()], strict=True):
            features = segment(features)
            logits.append(head(features))
        return logits

    def stages(self) -> tuple[ExitStage, ...]:
        """The exits and, last, the network's own remainder, as stages of one chain; without exits it costs as much as
        the network.
        """
        heads = [*self.heads, nn.Identity()]
        return tuple(
            ExitStage(name, (segment,), head, cost)
            for name, segment, head, cost in zip(self.names, self.segments, heads, self.costs, strict=True)
        )

    @torch.no_grad()
    def _count(self, features: Any) -> tuple[StageCost, ...]:
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        costs = []
        try:
            for segment, head in zip(self.segments, [*self.heads, nn.Identity()], strict=True):
                macs = count_cut_macs(segment, Call((features,)))
                features = segment(features)
                costs.append(StageCost(self.chain, macs, count_cut_macs(head, Call((features,)))))
        finally:
            for module, mode in modes:
                module.training = mode
        return tuple(costs)


def exit_network(
    model: nn.Module,
    example: Tensor,
    exits: int = EXITS,
    fractions: Sequence[float] | None = None,
    *,
    hidden: int = HIDDEN,
    chain: str = "network",
    seed: int = 0,
) -> ExitNetwork:
    """Put exits into a classifier, which is put in `eval` mode; heads are untrained but in a network with its own.

    Args:
        example: (1, ...) what the network is called with for one example.
        exits: how many, at even shares of the multiply-adds; fewer where the network has not so many places.
        fractions: shares of the multiply-adds at which they are wanted, instead of `exits`: the nearest places.
        hidden: width of each head's hidden layer.
        chain: what the network is called among the stages.
        seed: what the heads' weights are drawn from.

    Raises:
        UsageError: a fraction is not between 0 and 1, or no exit is asked for.
        ModelError: the network cannot be traced, gives no logits, or has no place for an exit.
    """
    wanted = _wanted(exits, fractions)
    if isinstance(model, OwnExits):
        return _with_own(model, example, wanted, chain)
    cuttable = Cuttable(model, example)
    points = cuttable.nearest(wanted)
    with torch.no_grad():
        classes = model(example[:1].clone()).shape[1]
    places = [
        Place(point.name, point.macs, HeadShape.of(point.shape, point.channel_dim, classes, hidden)) for point in points
    ]
    return placed(model, cuttable, places, example, chain, seed)


def placed(
    model: nn.Module, cuttable: Cuttable, places: Sequence[Place], example: Tensor, chain: str, seed: int = 0
) -> ExitNetwork:
    """Exits at given places of a network that was traced.

    Raises:
        ModelError: a place is no cut point of the network.
    """
    segments = cuttable.segments([place.name for place in places])
    device = example.device
    heads = [head_of(place.head, seed + i).to(device) for i, place in enumerate(places) if place.head is not None]
    return ExitNetwork(model, segments, [head.eval() for head in heads], places, example, chain).eval()


def with_own_exits(model: nn.Module, example: Tensor, indices: Sequence[int], chain: str) -> ExitNetwork:
    """Some of the exits, by index, of a network that has its own; the others' heads are left out.

    Raises:
        ModelError: the network has no such exits, or they do not fit it any more.
    """
    if not isinstance(model, OwnExits):
        raise ModelError(f"the exits are those of a network with its own, but {type(model).__name__} has none")
    parts, heads = model.exit_parts()
    if not all(0 <= index < len(heads) - 1 for index in indices):
        raise ModelError(f"the network must have exits {list(indices)}, but has {len(heads) - 1}; place them anew")
    segments: list[nn.Module] = []
    for start, stop in zip([0, *(i + 1 for i in indices)], [*(i + 1 for i in indices), len(parts)], strict=True):
        segments.append(nn.Sequential(*parts[start:stop]) if stop - start > 1 else parts[start])
    segments[-1] = nn.Sequential(segments[-1], heads[-1])
    places, macs = [], 0
    chosen = [heads[index] for index in indices]
    network = ExitNetwork(model, segments, chosen, (), example, chain).eval()
    for index, cost in zip(indices, network.costs, strict=False):
        macs += int(cost.body)
        places.append(Place(f"{OWN}:{index}", macs, None))
    network.places = tuple(places)
    return network


def every_own_exit(model: nn.Module, example: Tensor, chain: str) -> ExitNetwork:
    """A network that has exits of its own, put in `eval` mode, with all of them.

    Raises:
        ModelError: the exits do not fit it any more.
    """
    assert isinstance(model, OwnExits)
    every = range(len(model.exit_parts()[1]) - 1)
    try:
        return with_own_exits(model.eval(), example, every, chain)
    except RuntimeError:  # heads that pruning did not see
        raise ModelError(
            f"the exits of {type(model).__name__} must fit it, but it was cut without them; take the network it was "
            "cut from"
        ) from None


def _with_own(model: nn.Module, example: Tensor, fractions: Sequence[float], chain: str) -> ExitNetwork:
    whole = every_own_exit(model, example, chain)
    every = range(len(whole.places))
    total = sum(cost.body for cost in whole.costs)
    nearest = {min(every, key=lambda i: abs(whole.places[i].macs - share * total)) for share in fractions}
    return whole if len(nearest) == len(every) else with_own_exits(model, example, sorted(nearest), chain)


def _wanted(exits: int, fractions: Sequence[float] | None) -> tuple[float, ...]:
    if fractions is None:
        if exits < 1:
            raise UsageError(f"a network with exits needs at least 1, but got {exits}")
        return tuple((index + 1) / (exits + 1) for index in range(exits))
    strange = [fraction for fraction in fractions if not 0 < fraction < 1]
    if strange or not fractions:
        raise UsageError(f"exits stand at shares of the cost between 0 and 1, got {list(fractions)}; give e.g. 0.25")
    return tuple(sorted(fractions))

"""A stage: a network, or the part of one up to an exit, with what it costs and what it hands on.

Stages of one chain share work: each goes on from what the one before left in the state. Networks that stand alone are
chains of one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

State = dict[str, Any]  # chain -> tree of tensors, the first dimension of each the examples'


@dataclass(frozen=True)
class StageCost:
    """What a stage costs one example, in multiply-adds.

    Attributes:
        chain: stages of one chain share a body: going on costs only what lies between.
        body: from the stage before in the chain, or from the input, to this stage.
        head: of the answer given here; paid only where the stage is used.
    """

    chain: str
    body: float
    head: float = 0.0


class Stage(Protocol):
    """What is run on the examples that have not left yet."""

    @property
    def name(self) -> str: ...
    @property
    def cost(self) -> StageCost: ...

    def run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (b, classes) for inputs (b, ...), and the state for the stages that follow."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkStage:
    """A whole network, which shares nothing with the others."""

    name: str
    model: nn.Module
    cost: StageCost

    def run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        return self.model(inputs), state


@dataclass(frozen=True, eq=False)
class ExitStage:
    """The bodies from the last exit of the chain that is used to this one, and this exit's head.

    Attributes:
        bodies: applied one after the other to what the chain left in the state, or to the inputs.
        head: features -> logits.
    """

    name: str
    bodies: tuple[nn.Module, ...]
    head: nn.Module
    cost: StageCost

    def run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        features = state.get(self.cost.chain, inputs)
        for body in self.bodies:
            features = body(features)
        return self.head(features), {**state, self.cost.chain: features}


def without(stages: Sequence[ExitStage], used: Sequence[int]) -> tuple[ExitStage, ...]:
    """The exits `used` of one chain: the bodies of those left out go to the next one, their heads are gone."""
    kept: list[ExitStage] = []
    start = 0
    for index in used:
        parts = stages[start : index + 1]
        last = parts[-1]
        cost = StageCost(last.cost.chain, sum(part.cost.body for part in parts), last.cost.head)
        kept.append(ExitStage(last.name, tuple(body for part in parts for body in part.bodies), last.head, cost))
        start = index + 1
    return tuple(kept)


def path_costs(costs: Sequence[StageCost], used: Sequence[int]) -> list[float]:
    """What each of the stages `used`, visited in order, adds for one example: K multiply-adds.

    A chain's stages that are left out between two used ones lend their bodies to the later one.
    """
    added, reached = [], dict[str, int]()
    for index in used:
        chain = costs[index].chain
        between = range(reached.get(chain, -1) + 1, index + 1)
        added.append(sum(costs[i].body for i in between if costs[i].chain == chain) + costs[index].head)
        reached[chain] = index
    return added

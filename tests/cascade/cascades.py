"""A small cascade of every kind of stage, for the tests of what runs cascades."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import NEVER, Outcomes, StopRule, scores_of, simulate
from amc.cascade.serving.runtime import Answers, Cascade
from amc.cascade.stages.recording import record
from amc.cascade.stages.records import Records
from amc.cascade.stages.stage import ExitStage, NetworkStage, Stage, StageCost
from amc.system.device import Compute

CPU = Compute(torch.device("cpu"), False)
CLASSES = 4
ROUNDING = 1e-5  # of the largest number: float32 has 24 bits, 6e-8, and a sum of some hundred terms loses a few


class Counting(nn.Module):
    """A module that remembers the inputs it has seen."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Any:
        self.seen.append(inputs)
        return self.inner(inputs)


class TwoScales(nn.Module):
    """Features as a tuple of maps, as multi-scale networks hand them on."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, stride=2, padding=1)

    def forward(self, inputs: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        fine, coarse = inputs if isinstance(inputs, tuple) else (inputs, inputs)
        fine, coarse = fine.mean(1, keepdim=True), coarse.mean(1, keepdim=True)
        return self.fine(fine), self.coarse(coarse)


class CoarseHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, scales: tuple[Tensor, Tensor]) -> Tensor:
        return self.linear(4 * scales[1].relu().mean((2, 3)))


def some_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES))
    nn.init.normal_(network[-1].weight, std=0.3)
    return network.eval()


def some_stages(seed: int = 0, wrap: Callable[[nn.Module], nn.Module] = Counting) -> tuple[Stage, ...]:
    """A small network, two exits of another that hands on a tuple of maps, and a network that shares nothing."""
    torch.manual_seed(seed)
    first = ExitStage("exit0", (wrap(TwoScales()),), CoarseHead(), StageCost("body", 20, 1))
    second = ExitStage("exit1", (wrap(TwoScales()),), CoarseHead(), StageCost("body", 30, 2))
    saver, base = wrap(some_network(seed + 1)), wrap(some_network(seed + 2))
    stages = (
        NetworkStage("saver", saver, StageCost("saver", 10)),
        first,
        second,
        NetworkStage("base", base, StageCost("base", 100)),
    )
    for stage in (first, second):
        for module in (*stage.bodies, stage.head):
            module.eval()
    return stages


def some_inputs(number: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Held:
    """As much of a split as recording needs."""

    inputs: Tensor
    labels: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.inputs.split(size), self.labels.split(size), strict=True)


def cached_records(stages: tuple[Stage, ...], inputs: Tensor) -> Records:
    labels = torch.randint(0, CLASSES, (len(inputs),), generator=torch.Generator().manual_seed(1))
    return record(stages, Held(inputs, labels), CPU, batch_size=25)  # type: ignore[arg-type]


def between(scores: Tensor, quantiles: list[float]) -> tuple[float, ...]:
    """Thresholds halfway between scores that were seen, so that rounding decides nothing."""
    found = []
    for row, quantile in zip(scores, quantiles, strict=False):
        values = row.unique()
        place = round(quantile * (len(values) - 1))
        found.append(float(values[place] + values[max(0, place - 1)]) / 2 if place else float(values[0]) - 1)
    return tuple(found)


def half_cascade(stages: tuple[Stage, ...], inputs: Tensor, scorer: str = "confidence", best: bool = False) -> Cascade:
    """About half of the inputs leave at each stage."""
    records = cached_records(stages, inputs)
    fitted = SCORERS[scorer](records)
    scores, reached, thresholds = scores_of(records, fitted), torch.ones(len(inputs), dtype=torch.bool), []
    for row in scores[:-1]:
        thresholds += between(row[reached][None], [0.5]) if len(row[reached].unique()) > 1 else (NEVER,)
        reached &= row < thresholds[-1]
    return Cascade(stages, StopRule(fitted, tuple(thresholds), best))


def decided(records: Records, rule: StopRule) -> Tensor:
    """(n,) bool: the examples that rounding cannot make stop or answer otherwise.

    The same stage on another batch, thread count or machine runs other kernels, whose sums round otherwise. So records
    are moved by several draws of what that may be: an example is decided if it stops and answers alike in all of them.
    """
    added = [1.0] * len(records.stages)
    plain, sure = simulate(records, rule, added), torch.ones(len(records), dtype=torch.bool)
    for seed in range(16):  # at an edge, all on one side: 1 in 32,768
        draw = torch.rand(records.logits.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        moved = replace(records, logits=records.logits * (1 + ROUNDING * draw) + ROUNDING * draw.flip(1))
        other = simulate(moved, rule, added)
        sure &= (other.stop == plain.stop) & (other.answered == plain.answered)
        sure &= other.predictions == plain.predictions
    return sure


def assert_alike(found: Answers, wanted: Answers | Outcomes, sure: Tensor) -> None:
    """Equal stops, answers and costs of the examples that are `sure` (n,), nearly all of them; logits to rounding."""
    assert float(sure.double().mean()) > 0.8
    for name in ("stop", "answered", "predictions", "cost"):
        assert torch.equal(getattr(found, name)[sure], getattr(wanted, name)[sure]), name
    if isinstance(wanted, Answers):
        assert_close(found.logits[sure], wanted.logits[sure])


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Equal up to what rounding in another batch, thread count or machine may change."""
    assert found.shape == wanted.shape
    found, wanted = found.detach(), wanted.detach()
    assert float((found - wanted).abs().max()) <= ROUNDING * (1 + float(wanted.abs().max()))


def visits(stage: Any) -> list[Tensor]:
    """The inputs that a stage of `some_stages` has seen; clearing it forgets them."""
    module = stage.model if isinstance(stage, NetworkStage) else stage.bodies[0]
    seen: list[Tensor] = module.seen
    return seen

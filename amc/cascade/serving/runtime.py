"""Running a cascade: each stage sees only the examples that have not left, and the answers come back in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from time import perf_counter

import torch
from torch import Tensor

from amc.cascade.rules.stop_rule import StopRule
from amc.cascade.serving.active_examples import ActiveExamples, Finished
from amc.cascade.serving.latency import LatencyCurve
from amc.cascade.stages.stage import Stage, path_costs
from amc.system.device import Compute
from amc.system.errors import BudgetUnreachable, UsageError


@dataclass(frozen=True, eq=False)
class Answers:
    """What a cascade says of n inputs, in their order.

    Attributes:
        logits: (n, classes) float32 of the stage whose answer was taken.
        stop: (n,) int64, the last stage visited.
        answered: (n,) int64, the stage whose answer was taken.
        cost: (n,) float64 multiply-adds.
    """

    logits: Tensor
    stop: Tensor
    answered: Tensor
    cost: Tensor

    @property
    def predictions(self) -> Tensor:
        """(n,) int64."""
        return self.logits.argmax(1)


@dataclass(frozen=True, eq=False)
class Cascade:
    """Stages and when to stop, ready to run.

    Attributes:
        stages: in the order in which they are run; their modules in `eval` mode, on the compute's device.
        curves: seconds of each stage by batch size, by which a deadline is kept; () where they are not known.
    """

    stages: tuple[Stage, ...]
    rule: StopRule
    compute: Compute = field(default_factory=lambda: Compute(torch.device("cpu"), False))
    curves: tuple[LatencyCurve, ...] = ()

    def __post_init__(self) -> None:
        if not self.stages or len(self.rule.thresholds) != len(self.stages) - 1:
            raise UsageError(
                f"a cascade must have one threshold for each stage but the last, but has {len(self.stages)} stages and "
                f"{len(self.rule.thresholds)} thresholds; plan it anew for these stages"
            )
        if self.curves and len(self.curves) != len(self.stages):
            raise UsageError(
                f"a cascade must have a curve for each of its {len(self.stages)} stages, but has {len(self.curves)}; "
                "measure them anew"
            )

    @cached_property
    def costs(self) -> tuple[float, ...]:
        """S costs of an example by the stage at which it stops, in multiply-adds."""
        return tuple(accumulate(path_costs([stage.cost for stage in self.stages], range(len(self.stages)))))

    def cost_at(self, stop: Tensor) -> Tensor:
        """Where inputs stopped (n,) -> multiply-adds (n,) float64."""
        return self._costs[stop]

    @cached_property
    def _costs(self) -> Tensor:
        return torch.tensor(self.costs, dtype=torch.float64)

    def depth(self, max_cost: float | None = None) -> int:
        """How many stages an example may visit within `max_cost` multiply-adds.

        Raises:
            BudgetUnreachable: not even the first stage fits.
        """
        depth = len(self.costs) if max_cost is None else sum(cost <= max_cost for cost in self.costs)
        if depth == 0:
            raise BudgetUnreachable(
                f"the cost of an example must allow the first stage, {self.costs[0]:.0f} multiply-adds, but may be at "
                f"most {max_cost:.0f}; allow more"
            )
        return depth

    @torch.inference_mode()
    def run(self, inputs: Tensor, max_cost: float | None = None, seconds: float | None = None) -> Answers:
        """Answers for inputs (n, ...), the same as of each input by itself up to rounding.

        Args:
            max_cost: multiply-adds that no input may exceed.
            seconds: the time in which all answers are wanted. With `curves` no stage starts that would end too late,
                and where only some inputs can go on in time those with the lowest scores do; without them no stage
                starts when the time is over. The first stage is always run.

        Whoever is kept from going on is answered by the visited stage whose score is largest.

        Raises:
            BudgetUnreachable: `max_cost` does not allow the first stage.
        """
        deadline = None if seconds is None else perf_counter() + seconds
        if len(inputs) == 0:
            raise UsageError("inputs must hold at least one example, but are empty; leave the call out")
        depth = self.depth(max_cost)
        left: list[Finished] = []
        group: ActiveExamples | None = ActiveExamples(torch.arange(len(inputs)), inputs.to(self.compute.device), {})
        while group is not None:
            gone, group = self.step(group)
            left += gone
            if group is not None and (deadline is not None or depth < len(self.stages)):
                late, group = self.hasten(group, depth, deadline)
                left += late
        return self.in_order(left)

    def step(self, group: ActiveExamples) -> tuple[list[Finished], ActiveExamples | None]:
        """Run the group's next stage: who leaves there, and who goes on."""
        number, last = len(group.logits), len(self.stages) - 1
        scored = number < last or self.rule.best
        group = group.visit(self.stages[number], self.rule.scorer if scored else None, self.compute)
        if number == last:
            return [group.answers(self.rule.best)], None
        leaving = self.rule.stops(number, group.scores[-1])
        gone = leaving.nonzero()[:, 0]
        if len(gone) == 0:
            return [], group
        if len(gone) == len(group):
            return [group.answers(self.rule.best)], None
        return [group.answers(self.rule.best).take(gone)], group.take((~leaving).nonzero()[:, 0])

    def hasten(
        self, group: ActiveExamples, depth: int, deadline: float | None
    ) -> tuple[list[Finished], ActiveExamples | None]:
        """Who must be answered now to keep to `depth` stages and to `deadline` (of `perf_counter`), and who goes on."""
        fitting = self._in_time(len(group.logits), len(group), deadline) if len(group.logits) < depth else 0
        if fitting == len(group):
            return [], group
        left = group.answers(recall=True)
        if fitting == 0:
            return [left], None
        order = group.scores[-1].argsort(stable=True)
        return [left.take(order[fitting:])], group.take(order[:fitting].sort().values)

    def _in_time(self, stage: int, wanted: int, deadline: float | None) -> int:
        """How many of `wanted` examples can be through `stage` by the deadline."""
        if deadline is None:
            return wanted
        time_left = deadline - perf_counter()
        if self.curves:
            return self.curves[stage].most(time_left, wanted)
        return wanted if time_left > 0 else 0

    def in_order(self, left: Sequence[Finished]) -> Answers:
        """What was answered in parts, by the examples' rows: 0 to n - 1, each once."""
        whole = left[0] if len(left) == 1 else Finished(*map(torch.cat, zip(*left, strict=True)))
        if len(left) > 1:
            whole = whole.take(whole.rows.argsort())
        return Answers(whole.logits, whole.stop, whole.answered, self.cost_at(whole.stop))

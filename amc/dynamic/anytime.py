"""An answer under a deadline: stages are run while the next one is thought to fit in the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from amc.dynamic.stage import Stage, State
from amc.errors import UsageError


@dataclass(frozen=True, eq=False)
class AnytimeAnswer:
    """What was known when time was up.

    Attributes:
        logits: (b, classes) of the last stage that was run.
        stages: how many were.
        seconds: how long they took; above the deadline only where the machine was slower than measured, or where the
            first stage alone takes longer.
    """

    logits: Tensor
    stages: int
    seconds: float


@torch.inference_mode()
def stage_seconds(
    stages: Sequence[Stage], inputs: Tensor, repeats: int = 5, clock: Callable[[], float] = perf_counter
) -> list[float]:
    """Seconds that each stage takes on this machine for `inputs`, the median of `repeats` runs after a first one."""
    taken: list[list[float]] = [[] for _ in stages]
    for _ in range(repeats + 1):
        state: State = {}
        for stage, times in zip(stages, taken, strict=True):
            start = clock()
            _, state = stage.run(inputs, state)
            _wait(inputs)
            times.append(clock() - start)
    return [median(times[1:] or times) for times in taken]


@torch.inference_mode()
def answer_by(
    stages: Sequence[Stage],
    inputs: Tensor,
    deadline: float,
    seconds: Sequence[float],
    clock: Callable[[], float] = perf_counter,
) -> AnytimeAnswer:
    """Answer within `deadline` seconds, by the last stage that fits; the first one is run in any case.

    Args:
        seconds: what each stage takes for as many inputs, as `stage_seconds` has measured.

    Raises:
        UsageError: there is no stage, or no figure for each.
    """
    if not stages or len(seconds) != len(stages):
        raise UsageError(
            f"an answer needs stages, each with its measured seconds, but has {len(stages)} stages and {len(seconds)} "
            "figures; measure them with stage_seconds"
        )
    start = clock()
    logits, state = stages[0].run(inputs, {})
    _wait(inputs)
    done = 1
    for stage, expected in zip(stages[1:], seconds[1:], strict=True):
        if clock() - start + expected > deadline:
            break
        logits, state = stage.run(inputs, state)
        _wait(inputs)
        done += 1
    return AnytimeAnswer(logits, done, clock() - start)


def _wait(inputs: Tensor) -> None:
    """A GPU runs behind the program: its clock stops when the work is done."""
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)

"""Answers under a deadline, by a clock that the test moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amc.dynamic.anytime import answer_by, stage_seconds
from amc.dynamic.stage import StageCost, State
from amc.errors import UsageError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """Takes `seconds` of the clock and answers with its number."""

    def __init__(self, number: int, seconds: float, clock: Clock) -> None:
        self.name, self.cost = f"s{number}", StageCost("chain", 1.0)
        self.number, self.seconds, self.clock = number, seconds, clock

    def run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        assert state == ({} if self.number == 0 else {"reached": self.number - 1})
        self.clock.now += self.seconds
        return torch.full((len(inputs), 2), float(self.number)), {"reached": self.number}


INPUTS = torch.zeros(3, 1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_the_answer_is_that_of_the_last_stage_that_fits(times: list[int], deadline: int) -> None:
    clock = Clock()
    found = answer_by([Slow(i, t, clock) for i, t in enumerate(times)], INPUTS, deadline, times, clock)
    fitting = sum(sum(times[: k + 1]) <= deadline for k in range(len(times)))
    assert found.stages == max(1, fitting)
    assert float(found.logits[0, 0]) == found.stages - 1
    assert found.seconds == sum(times[: found.stages])
    assert found.seconds <= deadline or found.stages == 1


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.lists(st.integers(0, 200), min_size=2, max_size=4))
def test_more_time_never_gives_an_earlier_answer(times: list[int], deadlines: list[int]) -> None:
    reached = []
    for deadline in sorted(deadlines):
        clock = Clock()
        stages = [Slow(i, t, clock) for i, t in enumerate(times)]
        reached.append(answer_by(stages, INPUTS, deadline, times, clock).stages)
    assert reached == sorted(reached)


def test_a_machine_slower_than_measured_stops_earlier() -> None:
    clock = Clock()
    found = answer_by([Slow(i, 4.0, clock) for i in range(4)], INPUTS, 8.5, [2.0] * 4, clock)
    assert found.stages == 2 and found.seconds == 8.0


def test_seconds_are_measured_stage_by_stage() -> None:
    clock = Clock()
    assert stage_seconds([Slow(0, 3.0, clock), Slow(1, 5.0, clock)], INPUTS, 3, clock) == [3.0, 5.0]


def test_stages_without_figures_are_refused() -> None:
    with pytest.raises(UsageError, match="2 figures"):
        answer_by([Slow(0, 1.0, Clock())], INPUTS, 1.0, [1.0, 2.0])

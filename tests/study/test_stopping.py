from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.study.stopping import ALPHA, CheaperTrials, SequentialTest
from amc.study.trial import Trial

TOTAL, LOOK, RUNS = 600, 40, 400


def ever_stops(scores: torch.Tensor, test: SequentialTest) -> bool:
    """Whether a trial whose examples come in this order is stopped at any look."""
    return any(test(scores[:seen]) for seen in range(LOOK, len(scores), LOOK))


def false_stops(population: torch.Tensor, counted: bool) -> float:
    """The share of random orders in which a policy that just reaches the threshold is stopped all the same."""
    test = SequentialTest(float(population.mean()), TOTAL, TOTAL // LOOK, counted)
    draw = torch.Generator().manual_seed(0)
    return float(np.mean([ever_stops(population[torch.randperm(TOTAL, generator=draw)], test) for _ in range(RUNS)]))


@pytest.mark.parametrize("right", [60, 300, 480, 570])
def test_a_policy_that_reaches_the_threshold_is_rarely_stopped(right: int) -> None:
    """Looked at after every batch, at most `ALPHA` of all orders stop it, whatever its accuracy."""
    assert false_stops((torch.arange(TOTAL) < right).double(), counted=True) <= ALPHA


def test_scores_between_0_and_1_are_tested_as_soundly() -> None:
    """The same for the scores of a user's metric."""
    population = torch.rand(TOTAL, generator=torch.Generator().manual_seed(1)).double().sqrt()
    assert false_stops(population, counted=False) <= ALPHA


@pytest.mark.parametrize("counted", [True, False])
def test_a_clearly_bad_policy_stops_soon(counted: bool) -> None:
    """Half right where nine of ten are asked for: a fifth of the pictures is enough."""
    scores = (torch.arange(TOTAL) % 2).double()
    assert SequentialTest(0.9, TOTAL, TOTAL // LOOK, counted)(scores[: TOTAL // 5])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 99), st.integers(0, 99), st.floats(0.0, 1.0))
def test_what_has_reached_or_cannot_reach_it_is_told_for_certain(seen: int, right: int, threshold: float) -> None:
    """No stop while the scores so far are at the threshold; a stop once all the rest being right would not do."""
    right = min(right, seen)
    scores = (torch.arange(seen) < right).double()
    stops = SequentialTest(threshold, 100, 10)(scores)
    if right / seen >= threshold:
        assert not stops
    elif right + 100 - seen < threshold * 100 - 1e-6:
        assert stops


def test_few_wrong_pictures_prove_little() -> None:
    """The first pictures alone never stop a policy close below the threshold."""
    assert not SequentialTest(0.92, 2000, 8)((torch.arange(250) < 0.91 * 250).double())


def trial(accuracy: float, macs: float, params: float, stopped: bool = False) -> Trial:
    return Trial((8,), {"macs": macs, "params": params}, accuracy, 0.3, {}, stopped, 100)


def test_rivals_cost_no_more_in_any_unit() -> None:
    """The floor is the best whole trial that costs no more in every capped unit."""
    trials = [trial(0.8, 10, 10), trial(0.9, 10, 30), trial(0.95, 30, 5), trial(0.99, 5, 5, stopped=True)]
    both, macs = CheaperTrials(lambda: trials, ("macs", "params")), CheaperTrials(lambda: trials, ("macs",))
    assert both({"macs": 10, "params": 10}) == 0.8
    assert macs({"macs": 10, "params": 10}) == 0.9
    assert both({"macs": 9, "params": 9}) == 0.0
    assert CheaperTrials(lambda: trials, ("activation_bytes",))({"macs": 99, "params": 99}) == 0.0

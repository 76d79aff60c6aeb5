"""Scores: what is shown, what is estimated from held-out records, what is learned; and that a plan keeps them."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.cascade.rules.correctness import fit_probability, probability
from amc.cascade.rules.reliability import ESTIMATORS, NEVER_STOPS, bins, isotonic, window
from amc.cascade.rules.scorers import CONFIDENCE, SCORERS, features_read, scorer_from_json
from amc.cascade.rules.stop_rule import NEVER, StopRule, scores_of, simulate
from amc.cascade.stages.records import FEATURES, Records, features_of
from amc.system.errors import DataError
from tests.cascade.graded import graded_records

SEEDS = st.integers(0, 10**6)


def pairs(seed: int, number: int = 200, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Confidences in [0, 1], and outcomes that are more often right where it is larger."""
    draw = torch.Generator().manual_seed(seed)
    confidence = torch.rand(number, generator=draw, dtype=torch.float64)
    if ties:
        confidence = (confidence * 8).round() / 8
    return confidence, torch.rand(number, generator=draw, dtype=torch.float64) < confidence


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_read_back_from_json_gives_the_same_scores(name: str) -> None:
    """Strict JSON holds all that was fitted."""
    scorer = SCORERS[name](graded_records(0))
    again = scorer_from_json(json.loads(json.dumps(scorer.to_json(), allow_nan=False)))
    unseen = graded_records(1)
    assert again.kind == name
    assert torch.equal(scores_of(unseen, again), scores_of(unseen, scorer))


@pytest.mark.parametrize("name", SCORERS)
def test_an_example_is_scored_by_itself(name: str) -> None:
    """In a batch or alone its score agrees to 1e-12."""
    scorer, unseen = SCORERS[name](graded_records(0)), graded_records(1, number=30)
    whole = scores_of(unseen, scorer)
    alone = torch.cat([scores_of(unseen.take(torch.tensor([i])), scorer) for i in range(30)], 1)
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_needs_no_other_features_than_those_that_it_reads(name: str) -> None:
    """What is not computed is not missed."""
    scorer, unseen = SCORERS[name](graded_records(0)), graded_records(1)
    for stage in range(len(unseen.stages)):
        read = features_of(unseen.logits[: stage + 1], features_read(scorer))
        assert torch.equal(scorer.score(stage, read), scorer.score(stage, unseen.features[stage]))


@given(SEEDS, st.booleans())
@settings(deadline=None)
def test_isotonic_accuracy_never_falls_as_confidence_grows(seed: int, ties: bool) -> None:
    """Ties included."""
    curve = isotonic(*pairs(seed, ties=ties))
    grid = curve.at(torch.linspace(0, 1, 500, dtype=torch.float64))
    assert bool((grid.diff() >= 0).all())


@given(SEEDS, st.booleans())
@settings(deadline=None)
def test_isotonic_is_the_nearest_of_the_non_decreasing_functions(seed: int, ties: bool) -> None:
    """It meets the Karush-Kuhn-Tucker conditions of the least squares."""
    confidence, right = pairs(seed, number=60, ties=ties)
    fitted = isotonic(confidence, right).at(confidence)
    error = right.double() - fitted
    # the conditions of Karush, Kuhn and Tucker: blocks have no bias, and no upper part of a block wants to go down
    for value in fitted.unique():
        block = fitted == value
        assert float(error[block].sum()) == pytest.approx(0, abs=1e-9)
        for start in confidence[block].unique():
            assert float(error[block & (confidence >= start)].sum()) <= 1e-9


@given(SEEDS, st.sampled_from([-1e-9, 1e-9]))
@settings(deadline=None)
def test_isotonic_accuracy_of_a_fitted_example_does_not_change_with_rounding(seed: int, rounding: float) -> None:
    """Steps lie between the examples, not at them."""
    confidence, right = pairs(seed)
    confidence = (confidence * 1e6).round() / 1e6  # no two are nearer than that
    curve = isotonic(confidence, right)
    assert torch.equal(curve.at(confidence + rounding), curve.at(confidence))


@given(SEEDS, st.integers(1, 50))
@settings(deadline=None)
def test_bins_hold_the_accuracy_of_their_examples(seed: int, number: int) -> None:
    """An empty bin never stops anything."""
    confidence, right = pairs(seed, number=40)
    curve = bins(confidence, right, number=number)
    middles = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    for middle, value in zip(middles, curve.at(middles), strict=True):
        inside = (confidence - middle).abs() < 0.5 / number
        assert float(value) == (pytest.approx(float(right[inside].double().mean())) if inside.any() else NEVER_STOPS)


@given(SEEDS)
@settings(deadline=None)
def test_no_threshold_stops_an_example_in_an_empty_bin(seed: int) -> None:
    """However low it is."""
    fit, unseen = graded_records(seed, number=20), graded_records(seed + 1, number=100)
    rule = StopRule(SCORERS["bins"](fit), (-1e300, -1e300))
    empty = scores_of(unseen, rule.scorer)[0] == NEVER_STOPS
    assert bool(((simulate(unseen, rule, [1.0, 1.0, 1.0]).stop > 0) == empty).all())


def test_a_confidence_of_one_lies_in_the_last_bin() -> None:
    """The last bin is closed on both sides."""
    curve = bins(torch.tensor([0.05, 1.0]).double(), torch.tensor([False, True]))
    assert curve.at(torch.tensor([1.0, 0.95]).double()).tolist() == [1.0, 1.0]


@given(SEEDS, st.integers(1, 80), st.floats(0, 1))
@settings(deadline=None)
def test_a_window_is_the_mean_of_the_examples_nearest_in_rank(seed: int, width: int, asked: float) -> None:
    """As many on each side as there are."""
    confidence, right = pairs(seed, number=50)
    order = confidence.argsort()
    outcomes, ranked = right[order].double(), confidence[order]
    start = int((ranked <= asked).sum()) - width // 2
    start = max(0, min(start, 50 - min(width, 50)))
    expected = float(outcomes[start : start + width].mean())
    got = window(confidence, right, width=width).at(torch.tensor([asked]).double())
    assert float(got) == pytest.approx(expected)


@given(SEEDS, st.sampled_from([*ESTIMATORS]))
@settings(deadline=None)
def test_the_order_of_examples_does_not_matter_even_among_equal_confidences(seed: int, kind: str) -> None:
    """A permutation changes no estimate beyond rounding."""
    confidence, right = pairs(seed, ties=True)
    order = torch.randperm(len(confidence), generator=torch.Generator().manual_seed(seed))
    grid = torch.linspace(0, 1, 99, dtype=torch.float64)
    first = ESTIMATORS[kind](confidence, right).at(grid)
    torch.testing.assert_close(ESTIMATORS[kind](confidence[order], right[order]).at(grid), first)


@pytest.mark.parametrize("kind", ["isotonic", "rightness"])
def test_estimated_accuracies_are_those_of_unseen_examples_where_confidence_is_not(kind: str) -> None:
    """Within 4 points, where plain confidence is further off."""
    fit, unseen = graded_records(5, number=4000), graded_records(6, number=4000)
    scores = scores_of(unseen, SCORERS[kind](fit))
    for stage in range(3):
        fair = (scores[stage] >= 0.5) & (scores[stage] < 0.9)
        estimated, achieved = float(scores[stage][fair].mean()), float(unseen.right[stage][fair].double().mean())
        shown = float(unseen.features[stage, fair, CONFIDENCE].mean())
        assert abs(estimated - achieved) < 0.04 < shown - achieved


def test_the_regression_finds_the_odds_that_made_the_outcomes() -> None:
    """From 20,000 draws to 0.02 on average."""
    draw = torch.Generator().manual_seed(0)
    features = torch.rand(20_000, len(FEATURES), generator=draw, dtype=torch.float64)
    truth = torch.sigmoid(4 * features[:, 1] - 3 * features[:, 2])
    weights = fit_probability(features, torch.rand(20_000, generator=draw, dtype=torch.float64) < truth)
    assert float((probability(features, weights) - truth).abs().mean()) < 0.02


@pytest.mark.parametrize("outcome", [True, False])
def test_the_regression_ends_where_all_answers_are_right_or_all_wrong(outcome: bool) -> None:
    """Separable data give finite weights."""
    features = torch.rand(50, len(FEATURES), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = probability(features, fit_probability(features, torch.full((50,), outcome)))
    assert bool(((fitted > 0.9) if outcome else (fitted < 0.1)).all())


def test_deferral_goes_on_where_only_the_last_stage_is_right_and_not_where_no_stage_is() -> None:
    """Three kinds of examples, told apart by the first stage's second answer; its confidence is that of a coin."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 3, (3000,), generator=draw)  # easy, hard, hopeless
    first = torch.zeros(3000, 4)
    first[:, 0] = 2.0 + torch.rand(3000, generator=draw)
    first[kinds == 1, 1] = 1.9
    first[kinds == 2, 2:] = 1.9
    last = torch.zeros(3000, 4)
    last[:, 0] = 5.0
    last[kinds == 1] = torch.tensor([0.0, 5.0, 0.0, 0.0])
    records = Records(("a", "b"), torch.stack([first, last]), torch.tensor([0, 1, 3])[kinds])
    scores = scores_of(records, SCORERS["deferral"](records))
    assert scores[0][kinds == 1].max() < min(scores[0][kinds == 0].min(), scores[0][kinds == 2].min())
    assert bool((scores[1] == 0).all())


def test_patience_counts_the_answers_in_a_row() -> None:
    """The score is the number of stages that agree up to here."""
    logits = 5 * torch.eye(3)[torch.tensor([[0, 0], [1, 0], [1, 0]])]
    records = Records(("a", "b", "c"), logits, torch.tensor([1, 0]))
    assert scores_of(records, SCORERS["patience"](records)).tolist() == [[1, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize("record", [{}, {"kind": "guess"}, {"kind": "bins"}, {"kind": "deferral", "this": [[1.0]]}])
def test_a_description_that_is_no_scorer_is_refused(record: dict[str, object]) -> None:
    """An unknown or incomplete record is a `DataError`."""
    with pytest.raises(DataError):
        scorer_from_json(record)


@pytest.mark.parametrize("name", ["bins", "window", "isotonic", "rightness", "deferral"])
def test_nothing_is_fitted_to_no_examples(name: str) -> None:
    """The message gives their number."""
    with pytest.raises(DataError, match="0"):
        SCORERS[name](graded_records(0).take(torch.zeros(0, dtype=torch.int64)))


def test_never_is_above_every_score() -> None:
    """A threshold of NEVER stops nothing, whatever the scorer."""
    assert all(float(scores_of(graded_records(0), fit(graded_records(0))).max()) < NEVER for fit in SCORERS.values())

"""A certificate says what holds and how surely, or that nothing does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from amc.cascade.certify import Term, bounds, certify, report_exits
from amc.cascade.policy import NEVER, Policy, walk
from amc.cascade.records import Records
from amc.cascade.risk import RISKS, ladder
from amc.cascade.scores import Shown
from amc.system.errors import UsageError
from tests.cascade.population import ADDED, population

CONFIDENCE = Shown("confidence")
FIT, RISK, EVERYONE = population(1000, 0), population(1500, 1), population(60_000, 2)
LADDER = ladder(FIT, CONFIDENCE, 25)


@pytest.mark.parametrize(
    ("risk", "epsilon"), [("gap", 0.02), ("consistency", 0.04), ("accuracy", 0.35), ("brier", 0.02)]
)
def test_the_boldest_policy_that_passes_saves_cost_and_keeps_its_risk_on_everyone(risk: str, epsilon: float) -> None:
    """The certified policy is cheaper than the whole path, and its risk holds on the population."""
    found = certify(RISK, ADDED, LADDER, risk, epsilon, 0.1)
    assert found.policy is not None and found.chosen is not None and found.chosen > 0 and found.bound == epsilon
    walked = walk(EVERYONE, found.policy, ADDED)
    assert RISKS[risk].losses(EVERYONE, walked, ADDED).mean <= epsilon
    assert walked.mean_cost < sum(ADDED)


def test_a_certified_risk_is_broken_in_at_most_delta_of_draws() -> None:
    """Over 120 draws, up to sampling noise."""
    epsilon, delta, rounds = 0.03, 0.1, 120
    steps = LADDER[::3]
    true = [RISKS["gap"].losses(EVERYONE, walk(EVERYONE, policy, ADDED), ADDED).mean for policy in steps]
    draw = torch.Generator().manual_seed(3)
    broken = 0
    for _ in range(rounds):
        drawn = EVERYONE.take(torch.randint(0, len(EVERYONE), (300,), generator=draw))
        chosen = certify(drawn, ADDED, steps, "gap", epsilon, delta).chosen
        broken += chosen is not None and true[chosen] > epsilon
    assert broken / rounds <= delta + 2 * np.sqrt(delta * (1 - delta) / rounds)


def test_a_budget_of_the_mean_cost_is_certified_from_the_cheapest_up() -> None:
    """The ladder may be walked the other way, for a term on the cost."""
    found = certify(RISK, ADDED, LADDER[::-1], "cost", 6.0, 0.1)
    assert found.policy is not None and walk(EVERYONE, found.policy, ADDED).mean_cost <= 6.0
    assert "costs at most 6 MACs on average" in found.sentence


def test_several_terms_hold_together_or_nothing_is_certified() -> None:
    """A further term that fails takes the certificate away."""
    terms = [Term("cost", 9.0), Term("consistency", 0.1)]
    found = certify(RISK, ADDED, [LADDER[8]], "gap", 0.05, 0.1, besides=terms)
    assert found.chosen == 0 and [finding.bound for finding in found.findings] == [0.05, 9.0, 0.1]
    assert certify(RISK, ADDED, [LADDER[8]], "gap", 0.05, 0.1, besides=[Term("cost", 1.5)]).chosen is None


def test_nothing_passing_is_said_with_what_could_have_been_had() -> None:
    """The sentence says which bound would have held, and whether more examples would help."""
    found = certify(RISK, ADDED, LADDER[10:], "accuracy", 0.01, 0.1)
    assert found.chosen is None and found.policy is None and found.bound > 0.01
    assert found.sentence.startswith("Nothing is certified") and "on the very examples tested" in found.sentence
    few = certify(RISK.take(torch.arange(20)), ADDED, LADDER, "gap", 0.02, 0.1)
    assert few.chosen is None and "more examples" in few.sentence


def test_one_policy_chosen_beforehand_gets_its_own_bound_which_is_no_larger_than_the_term() -> None:
    """A ladder of one step needs no correction."""
    found = certify(RISK, ADDED, [LADDER[5]], "gap", 0.05, 0.1)
    assert found.chosen == 0 and found.bound < 0.05
    assert found.bound == pytest.approx(bounds(RISK, ADDED, LADDER[5], 0.1).gap_high)


def test_never_leaving_early_loses_nothing_but_cannot_be_told_from_little_by_few_examples() -> None:
    """Without any early exit a gap of 1 % is certified by 1,500 examples and not by 100."""
    never = [Policy(CONFIDENCE, (NEVER, NEVER))]
    assert certify(RISK, ADDED, never, "gap", 0.01, 0.1).chosen == 0
    assert certify(RISK.take(torch.arange(100)), ADDED, never, "gap", 0.01, 0.1).chosen is None


def test_bounds_of_one_policy_hold_on_everyone_and_its_largest_cost_is_the_whole_path() -> None:
    """Every bound lies on its side of the figure of the population."""
    found, walked = bounds(RISK, ADDED, LADDER[12], 0.05), walk(EVERYONE, LADDER[12], ADDED)
    assert found.accuracy_low <= walked.accuracy and found.mean_cost <= found.mean_cost_high
    assert walked.mean_cost <= found.mean_cost_high <= found.max_cost == sum(ADDED)
    assert RISKS["gap"].losses(EVERYONE, walked, ADDED).mean <= found.gap_high


def test_exits_are_reported_each_by_itself_and_add_up_to_the_whole() -> None:
    """Counts, shares and accuracies of the exits give those of the walk, and intervals hold the population's."""
    walked = walk(RISK, LADDER[12], ADDED)
    exits = report_exits(RISK, walked, 0.001)
    assert sum(row.count for row in exits) == len(RISK) and sum(row.share for row in exits) == pytest.approx(1)
    rights = sum(row.count * row.accuracy for row in exits if row.accuracy is not None)
    assert rights / len(RISK) == pytest.approx(walked.accuracy)
    on_everyone = report_exits(EVERYONE, walk(EVERYONE, LADDER[12], ADDED), 0.001)
    for row, true in zip(exits, on_everyone, strict=True):
        assert row.accuracy is not None and row.gap is not None and true.accuracy is not None and true.gap is not None
        assert row.accuracy_interval[0] <= row.accuracy <= row.accuracy_interval[1]
        assert row.accuracy_interval[0] <= true.accuracy <= row.accuracy_interval[1]
        assert row.gap_interval[0] <= true.gap <= row.gap_interval[1]


def test_an_exit_that_nobody_takes_is_reported_as_unknown() -> None:
    """Its accuracy is None, and its intervals say nothing."""
    first = report_exits(RISK, walk(RISK, LADDER[0], ADDED), 0.1)[0]
    assert first.count == 0 and first.accuracy is first.gap is None
    assert first.accuracy_interval == (0.0, 1.0) and first.gap_interval == (-1.0, 1.0)


def test_a_certificate_is_kept_as_plain_json() -> None:
    """The sentence and its numbers survive."""
    found = certify(RISK, ADDED, LADDER[:4], "gap", 0.05, 0.1)
    kept = json.loads(json.dumps(found.to_json()))
    assert kept["sentence"] == found.sentence and kept["findings"][0]["term"] == {"risk": "gap", "most": 0.05}
    assert (
        "With 90% confidence, on inputs like the 1,500 tested, the cascade loses at most 5.00 points" in found.sentence
    )


def test_without_policies_or_examples_or_a_level_there_is_no_certificate() -> None:
    """Each is refused with what to give instead."""
    empty = Records(RISK.stages, RISK.logits[:, :0], RISK.labels[:0])
    for records, policies, delta in ((RISK, [], 0.1), (empty, LADDER, 0.1), (RISK, LADDER, 0.0)):
        with pytest.raises(UsageError, match="give more"):
            certify(records, ADDED, policies, "gap", 0.05, delta)
    with pytest.raises(UsageError, match="raise it"):
        Term("consistency", -0.1)

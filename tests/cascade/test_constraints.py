"""What users write for constraints, and what it means."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.cascade.planning.constraints import Constraints
from amc.system.errors import UsageError


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "--budget"),
        ({"budget": "5Mparams"}, "multiply-adds"),
        ({"budget": "lots"}, "lots"),
        ({"max_cost": "9MB"}, "--max-cost"),
        ({"accuracy": "2"}, "--accuracy"),
        ({"max_drop": "few"}, "--max-drop"),
        ({"accuracy": "0.9", "confidence": 1.0}, "--confidence"),
        ({"accuracy": "0.9", "confidence": 0.3}, "--confidence"),
    ],
)
def test_terms_that_make_no_sense_are_refused_in_one_line(given: dict[str, str], word: str) -> None:
    """The message names the term."""
    with pytest.raises(UsageError) as caught:
        Constraints.read(**{"budget": None, "max_cost": None, "accuracy": None, "max_drop": None, **given})  # type: ignore[arg-type]
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["30", "0", "9MB", "60%params", "much", "", "30 %%"])
def test_a_cost_in_another_unit_is_answered_with_those_that_a_cascade_takes(text: str) -> None:
    """Shares and multiply-adds, nothing else."""
    with pytest.raises(UsageError) as caught:
        Constraints(budget=text)
    advice = str(caught.value).split(";")[-1]
    assert "%" in advice and "MFLOPs" in advice and not any(unit in advice for unit in ("params", "MB", "bytes"))


def test_costs_are_multiply_adds_or_shares_of_the_dense_network_and_a_worst_case_may_be_above_it() -> None:
    """A largest cost may exceed 100 %, a budget is a mean."""
    assert Constraints(budget="1.2GFLOPs").limits(5e9).mean_cost == 1.2e9
    assert Constraints(budget="30%").limits(1000).mean_cost == 300
    limits = Constraints(max_cost="130%", max_drop=0.005, confidence=0.95).limits(1000)
    assert limits.max_cost == 1300 and limits.drop == 0.005 and limits.delta == pytest.approx(0.05)
    assert limits.mean_cost is None and limits.accuracy is None


def test_what_is_asked_of_accuracy_decides_whether_the_plan_is_to_be_cheap_or_accurate() -> None:
    """With a term on accuracy the plan is the cheapest, else the most accurate."""
    assert not Constraints(budget="30%", max_cost="90%").limits(1).wants_cheapest
    assert (
        Constraints(accuracy=0.9).limits(1).wants_cheapest
        and Constraints(max_drop=0.0, budget="9%").limits(1).wants_cheapest
    )


@given(st.integers(0, 100_000))
@settings(deadline=None)
def test_percentages_and_shares_say_the_same(thousandths: int) -> None:
    """For every thousandth of a percent."""
    written = Constraints.read(None, None, f"{thousandths / 1e3:.3f}%", None).accuracy
    assert written == pytest.approx(Constraints.read(None, None, f"{thousandths / 1e5:.5f}", None).accuracy, abs=1e-9)


def test_constraints_name_a_folder() -> None:
    """The name holds each term that was given."""
    constraints = Constraints(budget="300 MFLOPs", max_cost="120%", max_drop=0.01, confidence=0.95)
    assert constraints.name == "budget-300MFLOPs-max-cost-120%-max-drop-1%-confidence-95%"
    assert Constraints(budget="30%").name == "budget-30%"

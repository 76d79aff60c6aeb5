import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.cost.budget import (
    UNITS,
    Budget,
    Unit,
    flops_2x,
    format_bytes,
    format_cost,
    format_flops_2x,
    format_macs,
    format_params,
    parse_budget,
    parse_budgets,
)
from amc.system.errors import UsageError

WHOLE = st.floats(min_value=1e-6, max_value=1e18)
BUDGETS = st.builds(Budget, st.sampled_from(UNITS), WHOLE) | st.builds(
    Budget, st.sampled_from(UNITS), st.floats(min_value=1e-6, max_value=1), st.just(True)
)


@given(BUDGETS)
def test_parse_and_format_are_inverse(budget: Budget) -> None:
    """What a budget writes is read back as the same budget."""
    assert parse_budget(str(budget)) == budget


@given(BUDGETS, st.sampled_from([str.lower, str.upper, str.title]))
def test_case_does_not_matter_where_it_is_unambiguous(budget: Budget, change: object) -> None:
    """Lower and upper case are read alike; only a small b behind a capital prefix may be refused."""
    text = change(str(budget))  # type: ignore[operator]
    try:
        assert parse_budget(text) == budget
    except UsageError as error:
        assert "could mean bits" in str(error)


@pytest.mark.parametrize(
    ("text", "unit", "value", "relative"),
    [
        ("1.2GFLOPs", "macs", 1.2e9, False),
        ("1.2GMACs", "macs", 1.2e9, False),
        ("600M", "macs", 6e8, False),
        ("2.4GFLOPs2x", "macs", 1.2e9, False),
        ("30.78 MFLOPs2x", "macs", 15.39e6, False),
        (" 600 mflops ", "macs", 6e8, False),
        ("1e9MACs", "macs", 1e9, False),
        ("40%", "macs", 0.4, True),
        ("29%", "macs", 0.29, True),
        ("100%flops", "macs", 1.0, True),
        ("60%params", "params", 0.6, True),
        ("50%bytes", "bytes", 0.5, True),
        ("70%act", "activation_bytes", 0.7, True),
        ("2.5Mparams", "params", 2.5e6, False),
        ("9MB", "bytes", 9e6, False),
        ("9mb", "bytes", 9e6, False),
        ("512KB", "bytes", 512e3, False),
        ("4MiB", "bytes", 4 * 2**20, False),
        ("300bytes", "bytes", 300, False),
        ("1.5MBact", "activation_bytes", 1.5e6, False),
        ("2MiBact", "activation_bytes", 2**21, False),
    ],
)
def test_grammar(text: str, unit: str, value: float, relative: bool) -> None:
    """Every documented form is read with its unit and scale."""
    budget = parse_budget(text)
    assert (budget.unit, budget.value, budget.relative) == (unit, value, relative)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "nan",
        "NaN%",
        "inf",
        "-5M",
        "0%",
        "0MB",
        "-0M",
        "101%",
        "100.0001%",
        "1e999M",
        "1e-999M",
        "GFLOPs",
        "1.2",
        "0.5",
        "12Xparams",
        "5Mb",
        "5Gib",
        "1.2.3G",
        "40%%",
        "five",
        "٤٠%",
        "9B",
        "1.2Gflopz",
        "--",
        "1,2",
    ],
)
def test_malformed_budgets_are_one_clear_line(text: str) -> None:
    """A malformed budget is a usage error of one line that shows a form which works."""
    with pytest.raises(UsageError) as caught:
        parse_budgets([text])
    message = str(caught.value)
    assert "\n" not in message
    assert "budget" in message


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_a_usage_error(text: str) -> None:
    """No text makes the parser fail in another way."""
    try:
        parse_budget(text)
    except UsageError as error:
        assert text or "empty" in str(error)


def test_an_unknown_unit_names_the_nearest() -> None:
    """A mistyped unit is answered with the unit that was meant."""
    with pytest.raises(UsageError, match=r"did you mean 2GFLOPs\?"):
        parse_budget("2Gflopz")


@pytest.mark.parametrize(
    ("unit", "value", "relative"),
    [
        ("macs", 0, False),
        ("macs", float("nan"), False),
        ("macs", 1.5, True),
        ("flops", 5, False),
    ],
)
def test_a_budget_made_in_code_is_checked_too(unit: str, value: float, relative: bool) -> None:
    """The dataclass refuses what the parser refuses."""
    with pytest.raises(UsageError):
        Budget(unit, value, relative)  # type: ignore[arg-type]


def test_several_budgets() -> None:
    """Commas and repeated flags give the same budgets."""
    assert (
        parse_budgets(["60%, 9MB"])
        == parse_budgets(["60%", "9MB"])
        == (Budget("macs", 0.6, True), Budget("bytes", 9e6))
    )


@pytest.mark.parametrize("texts", [["60%", "1GMACs"], ["9MB,8MB"], []])
def test_two_budgets_of_one_unit_or_none_are_refused(texts: list[str]) -> None:
    """Which of two caps on one unit holds is never guessed, and no budget is no job."""
    with pytest.raises(UsageError, match=r"keep the tighter one|at least one"):
        parse_budgets(texts)


def test_limit() -> None:
    """A share is taken of the dense cost exactly; whole units are kept."""
    assert parse_budget("29%").limit({"macs": 100}) == 29
    assert parse_budget("29%params").limit({"macs": 1, "params": 1e6}) == 290_000
    assert parse_budget("600M").limit({}) == 6e8
    with pytest.raises(UsageError, match="needs the dense network's bytes"):
        parse_budget("50%bytes").limit({"macs": 100})


@given(st.sampled_from(UNITS), st.floats(min_value=0.01, max_value=1e17))
def test_what_is_printed_can_be_given_back(unit: Unit, cost: float) -> None:
    """A printed cost is read as a budget of its own unit, and as that cost to the digits that were printed."""
    texts = [format_cost(unit, cost)]
    texts += {"macs": [format_macs(cost), format_flops_2x(cost)], "params": [format_params(cost)],
              "bytes": [format_bytes(cost)], "activation_bytes": []}[unit]  # fmt: skip
    for text in texts:
        budget = parse_budget(text)
        assert budget.unit == unit and not budget.relative
        assert budget.value == pytest.approx(cost, rel=0.006, abs=0.006)


def test_figures_for_people() -> None:
    """Multiply-adds and the 2-per-multiply-add figure each stand under their own name."""
    assert format_macs(1.2e9) == "1.20 GMACs"
    assert format_macs(999_999_999) == "1.00 GMACs"
    assert format_macs(600) == "600 MACs"
    assert flops_2x(1.2e9) == 2.4e9
    assert format_flops_2x(1.2e9) == "2.40 GFLOPs2x"
    assert format_params(2_500_000) == "2.50 M params"
    assert format_params(12) == "12 params"
    assert format_bytes(9e6) == "9.00 MB"
    assert format_bytes(9e3) == "9.00 kB"
    assert format_macs(5e16) == "50000.00 TMACs"
    assert format_bytes(300) == "300 bytes"
    assert format_cost("activation_bytes", 1.5e6) == "1.50 MBact"
    assert format_cost("macs", 0) == "0 MACs"


def test_budget_and_recipe_do_not_import_torch() -> None:
    """The command line's help needs budgets and recipes, and must not wait for torch."""
    code = "import sys, amc.cost.budget, amc.job.recipe; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

"""What a comparison says of its searches: intervals, places, goals."""

from __future__ import annotations

import math
from typing import Any

import pytest

from amc.bench.search_methods.bench_recipe import BenchRecipe
from amc.bench.search_methods.finals import Final
from amc.bench.search_methods.findings import Findings, figures
from amc.bench.search_methods.goals import goals, held
from amc.bench.search_methods.orders import Order
from amc.bench.search_methods.searches import Search, Spec
from amc.bench.statistics import Interval, Sample, interval, paired, places, spread


def test_intervals_are_students() -> None:
    """Of 1..5: mean 3, half-width 2.776 x 1.5811 / sqrt 5; a single value has none."""
    found = interval([1, 2, 3, 4, 5])
    assert found.mean == 3 and found.half == pytest.approx(1.9632, abs=1e-4) and found.n == 5
    assert interval([2.0]).low is None


def test_differences_are_taken_in_pairs() -> None:
    """Seeds that one side lacks are left out; a constant difference has no width."""
    found = paired(Sample({0: 0.5, 1: 0.7, 2: 0.1}), Sample({0: 0.25, 1: 0.45, 3: 9.0}))
    assert found is not None and found.n == 2
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert paired(Sample({0: 1.0}), Sample({1: 1.0})) is None and paired(Sample({}), Sample({}, True)) is None


def test_a_deterministic_method_counts_once() -> None:
    """It has no interval, and stands beside every seed of the other side; two of them make one difference."""
    ours, same = Sample({0: 0.5, 1: 0.7, 2: 0.6}), Sample({0: 0.1, 1: 0.1}, fixed=True)
    assert same.interval == Interval(0.1, None, None, 1)
    found, twins = paired(ours, same), paired(same, same)
    assert found is not None and found.n == 3 and found.mean == pytest.approx(0.5)
    assert twins == Interval(0.0, None, None, 1)


def test_equal_means_share_a_place() -> None:
    """The next place is then left empty, as in sports."""
    assert places({"a": 0.5, "b": 0.9, "c": 0.5, "d": 0.1}) == {"b": 1, "a": 2, "c": 2, "d": 4}


def test_spread_of_means_stands_beside_the_noise_within() -> None:
    """Standard deviation between the means of groups, and the pooled one within; one value has neither."""
    between, within = spread([[1.0, 3.0], [5.0, 7.0]])
    assert between == pytest.approx(math.sqrt(8)) and within == pytest.approx(math.sqrt(2))
    assert spread([[1.0]]) == (None, None)


def made(method: str, seed: int, values: list[float], trials: int = 4, cap: str = "40%") -> Search:
    n = len(values)
    fits = {cap: [True] * n}
    spec = Spec(method, cap, trials, seed)
    return Search(spec, [[seed, i] for i in range(n)], values, values, [1.0] * n, [0.5] * (n + 1), fits)


def small(**more: Any) -> BenchRecipe:
    table = {"recipe": "quickstart", "caps": ["40%"], "trials": 4, "seeds": 2, "long": 8, "methods": ["amc", "tpe"]}
    return BenchRecipe.model_validate({**table, **more})


def of_seeds(method: str, bests: list[float], trials: int = 4) -> list[Search]:
    return [made(method, seed, [best], trials) for seed, best in enumerate(bests)]


def test_goals_are_told_plainly() -> None:
    """Better than the other with as many labels, worse than it with more, each with its interval."""
    searches = of_seeds("amc", [0.60, 0.61, 0.62]) + of_seeds("tpe", [0.5] * 3) + of_seeds("tpe", [0.7] * 3, 8)
    recipe = small(seeds=3)
    short, long = goals(Findings(recipe, searches + of_seeds("amc", [0.6] * 3, 8)))
    assert short.verdict == "met" and short.by_cap["40%"] == "+0.1100 (+0.0852 to +0.1348, n 3) against tpe"
    assert long.verdict == "not met" and "-0.0900" in long.by_cap["40%"]


def test_a_bench_half_done_has_met_no_goal() -> None:
    """Until the last search the verdict waits, and the differences so far are listed."""
    searches = of_seeds("amc", [0.60, 0.61, 0.62]) + of_seeds("tpe", [0.5] * 3)
    for recipe in (small(seeds=4, long=0), small(seeds=3, long=0, caps=["40%", "50%"])):
        (goal,) = goals(Findings(recipe, searches))
        assert goal.verdict == "not measured" and goal.missing.startswith("6 of ") and "+0.11" in goal.by_cap["40%"]
    recipe = small(seeds=3, long=0, methods=["amc", "tpe", "gone"])
    assert goals(Findings(recipe, searches))[0].missing == "6 of 9 searches"
    assert goals(Findings(recipe, searches, left_out={"gone": {"40%": "no"}}))[0].verdict == "met"


@pytest.mark.parametrize(
    ("low", "high", "n", "equal", "better"),
    [
        (0.1, 0.2, 3, "met", "met"),
        (0.1, 0.2, 2, "cannot tell", "cannot tell"),
        (0.1, 0.1, 3, "cannot tell", "cannot tell"),
        (-0.01, 0.2, 3, "cannot tell", "cannot tell"),
        (0.0, 0.2, 3, "met", "cannot tell"),
        (-0.2, 0.0, 3, "cannot tell", "not met"),
        (-0.2, -0.1, 3, "not met", "not met"),
        (None, None, 1, "cannot tell", "cannot tell"),
    ],
)
def test_only_a_whole_interval_speaks(low: float | None, high: float | None, n: int, equal: str, better: str) -> None:
    """A claim holds only if its interval lies on one side of zero."""
    found = Interval(0.05, low, high, n)
    assert (held(found, 0.0), held(found, 0.0, strictly=True)) == (equal, better)


def test_the_order_is_judged_by_its_interval() -> None:
    """Kendall of at least 0.8 is met by an interval above it, not met by one below, else nobody can tell."""
    recipe = small(seeds=3, long=0, rank=5)
    for values, verdict in (
        ([0.9, 0.91, 0.92], "met"),
        ([0.5, 0.51, 0.52], "not met"),
        ([0.6, 0.8, 0.95], "cannot tell"),
    ):
        orders = [Order(Spec("amc", "40%", 4, s), 0, [], [], [], v, v) for s, v in enumerate(values)]
        assert goals(Findings(recipe, [], orders))[-1].verdict == verdict
        assert goals(Findings(recipe, [], orders[:2]))[-1].missing == "2 of 3 orders"


def test_a_fine_tune_without_spread_and_noise_is_not_measured() -> None:
    """What tells whether the choice of a policy matters must be there."""
    searches = of_seeds("amc", [0.60, 0.61, 0.62]) + of_seeds("tpe", [0.5] * 3)
    recipe = small(seeds=3, long=0, finetune=True)
    tuned = {
        method: {s: [Final(at + s / 1000, 0.1, 0.5, 1.0), Final(at, 0.1, 0.5, 1.0)] for s in range(3)}
        for method, at in (("amc", 0.9), ("tpe", 0.8), ("uniform", 0.7))
    }
    tuned["amc"][0] = [Final(0.91, 0.1, 0.5, 1.0)] * 2
    drawn = {"40%": [[Final(a, 0.1, 0.5, 1.0), Final(a + 0.01, 0.1, 0.5, 1.0)] for a in (0.5, 0.6)]}
    assert goals(Findings(recipe, searches, [], {"40%": tuned}))[-1].verdict == "not measured"
    assert goals(Findings(recipe, searches, [], {"40%": tuned}, drawn))[-1].verdict == "met"
    late = goals(Findings(recipe, searches, [], {"40%": tuned}, drawn, unjudged=2))[-1]
    assert (late.verdict, late.missing) == ("not measured", "2 fine-tunes are missing")


def test_parts_of_ours_are_no_other_methods() -> None:
    """A goal is about other methods: an ablation of ours may be better and changes nothing."""
    searches = of_seeds("amc", [0.50, 0.51, 0.52]) + of_seeds("amc-no-merit", [0.9] * 3) + of_seeds("tpe", [0.4] * 3)
    recipe = small(seeds=3, long=0, methods=["amc", "amc-no-merit", "tpe"])
    assert goals(Findings(recipe, searches))[0].verdict == "met"


def test_a_search_without_a_feasible_policy_found_nothing() -> None:
    """Its best objective value is 0, and it has no winner."""
    lost = Search(Spec("tpe", "40%", 4, 0), [[1]], [0.9], [0.9], [1.0], [0.0, 0.0], {"40%": [False]})
    assert lost.best() == 0 and lost.winner() is None and lost.winner_accuracy() == 0


def test_figures_follow_from_the_searches() -> None:
    """Mean, place, difference and seconds of made-up searches."""
    searches = [made("amc", 0, [0.5, 0.6]), made("amc", 1, [0.7]), made("tpe", 0, [0.1]), made("tpe", 1, [0.4])]
    rows = figures(Findings(small(long=0), searches))["searches"]["40%"]["4"]
    assert rows["amc"]["mean"] == pytest.approx(0.65) and rows["amc"]["place"] == 1 and rows["tpe"]["place"] == 2
    assert rows["tpe"]["ours_minus"]["mean"] == pytest.approx(0.4) and rows["amc"]["trial_seconds"] == 1.5

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.cost.budget import Budget
from amc.job.front import Point, front, front_text, undominated
from amc.job.run import Run
from amc.study.pareto import non_dominated

NUMBERS = st.integers(0, 6).map(float)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20)


@pytest.fixture(scope="module")
def found(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder: Path = tmp_path_factory.mktemp("front") / "run"
    shutil.copytree(tiny_run.folder, folder)
    return front(folder, 6)


def test_points_are_monotone_and_under_their_caps(found) -> None:  # type: ignore[no-untyped-def]
    """Along the front, cost and predicted accuracy rise strictly, and no cost is above its cap."""
    points = found["points"]
    assert 2 <= len(points) <= 6
    assert all(point["cost"] <= point["cap"] for point in points)
    for smaller, larger in pairwise(points):
        assert smaller["cost"] < larger["cost"]
        assert smaller["mean"] < larger["mean"]


def test_points_tell_exact_cost_and_interval(found, tiny_run: Run) -> None:  # type: ignore[no-untyped-def]
    """The cost is that of the policy told, and the interval holds the mean."""
    space = tiny_run.job.space
    for point in found["points"]:
        policy = np.array([point["policy"][name] for name in space.names], dtype=np.int64)
        assert space.is_legal(policy)
        assert point["cost"] == tiny_run.job.trace.costs_of(policy)["macs"]
        assert point["low"] <= point["mean"] <= point["high"]


def test_first_point_is_the_smallest_policy(found, tiny_run: Run) -> None:  # type: ignore[no-untyped-def]
    """The range starts at the smallest reachable cost."""
    space = tiny_run.job.space
    assert found["points"][0]["policy"] == dict(zip(space.names, space.steps, strict=True))
    assert found["points"][0]["cost"] == found["smallest_cost"]


def test_points_are_what_retarget_gives(found, tiny_run: Run) -> None:  # type: ignore[no-untyped-def]
    """A point of the front is the policy that a retarget to its cap starts from."""
    point = found["points"][-1]
    assert tiny_run.retarget(Budget("macs", point["cap"]), candidates=0).policy.kept == point["policy"]


def test_measured_front_is_of_the_trials(found, tiny_run: Run) -> None:  # type: ignore[no-untyped-def]
    """Each point of the measured front is a trial, and no trial beats it."""
    trials = [(trial.costs["macs"], trial.accuracy) for trial in tiny_run.study.trials]
    for point in found["measured"]:
        here = point["cost"], point["accuracy"]
        assert here in trials
        assert not any(cost <= here[0] and accuracy > here[1] for cost, accuracy in trials)


def test_table_and_page(found) -> None:  # type: ignore[no-untyped-def]
    """The table's columns are aligned, the page is written, and the result is JSON."""
    rows = front_text(found).splitlines()[: 1 + len(found["points"])]
    assert len({len(row) for row in rows}) == 1
    page = Path(found["plot"]).read_text(encoding="utf-8")
    assert "predicted front" in page
    assert "https://cdn.plot.ly" not in page.split("<script>")[0]
    assert json.loads(json.dumps(found)) == found


@given(PAIRS)
def test_no_point_of_a_front_is_dominated(pairs: list[tuple[float, float]]) -> None:
    """Every point is dominated by, or equal to, one of the front; within the front both rise strictly."""
    chosen = [pairs[i] for i in non_dominated([c for c, _ in pairs], [m for _, m in pairs])]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(chosen))
    assert all(any(cost <= c and merit >= m for cost, merit in chosen) for c, m in pairs)


@given(PAIRS, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_order(pairs: list[tuple[float, float]], rng: random.Random) -> None:
    """The same points in another order give the same front."""
    points = [Point(9.0, cost, mean, 0.1, 0.0, 1.0, {"conv": i % 3}) for i, (cost, mean) in enumerate(pairs)]
    shuffled = points.copy()
    rng.shuffle(shuffled)
    assert undominated(points) == undominated(shuffled)


def test_nan_is_never_on_the_front() -> None:
    """A point whose merit is unknown is dominated."""
    assert non_dominated([1.0, 2.0], [float("nan"), 0.5]).tolist() == [1]

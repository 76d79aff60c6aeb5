from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amc.dense import Dense, prepare
from amc.evaluation import evaluate
from amc.recipe import load_recipe
from tests.tiny import trained_weights


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """A small trained network whose 100 measured pictures come in five batches."""
    weights = trained_weights(tmp_path_factory.mktemp("trial") / "dense.safetensors")
    wanted = {
        "model.name": "tests.tiny:network",
        "model.weights": str(weights),
        "data.name": "tests.tiny:pictures",
        "search.batch_size": 20,
        "recovery.moment_images": 200,
        "recovery.batchnorm_images": 100,
    }
    return prepare(load_recipe(None, wanted))


def half(dense: Dense) -> np.ndarray:  # type: ignore[type-arg]
    return dense.space.nearest(dense.space.high / 2)


def test_a_trial_is_the_realised_network_on_the_measure_split(dense: Dense) -> None:
    """Accuracy and loss are those of `realise`, evaluated in the split's own order; all pictures were seen."""
    trial = dense.measure(half(dense))
    found = evaluate(dense.measure.realise(half(dense)), dense.splits.measure, dense.compute, batch_size=20)
    assert trial.accuracy == pytest.approx(found.accuracy) and trial.loss == pytest.approx(found.loss, rel=1e-4)
    assert trial.images == 100 and not trial.stopped
    assert set(trial.seconds) == {"cut", "fold", "batchnorm", "evaluate"}
    assert trial.costs == dense.costs_of(half(dense))


def test_the_same_policy_gives_the_same_trial(dense: Dense) -> None:
    """Nothing of one trial is left over in the next."""
    first, other, again = (dense.measure(policy) for policy in (half(dense), dense.space.high, half(dense)))
    assert (first.accuracy, first.loss) == (again.accuracy, again.loss) != (other.accuracy, other.loss)


def test_a_trial_that_cannot_matter_stops_early(dense: Dense) -> None:
    """The floor is asked with the policy's own costs; accuracy and loss are of the pictures seen until then."""
    asked = []

    def floor(costs: object) -> float:
        asked.append(costs)
        return 0.999

    policy = np.ones_like(dense.space.high) * dense.space.step
    whole, stopped = dense.measure(policy), dense.measure(policy, floor)
    assert asked == [dense.costs_of(policy)]
    assert stopped.stopped and stopped.images is not None and 0 < stopped.images < 100 and stopped.images % 20 == 0
    seen = dense.measure.evaluate(dense.measure.realise(policy)).scores[: stopped.images]
    assert stopped.accuracy == pytest.approx(float(seen.mean())) and np.isfinite(stopped.loss)
    assert not whole.stopped


def test_a_floor_that_is_reached_stops_nothing(dense: Dense) -> None:
    """A trial above the floor is the whole trial."""
    whole = dense.measure(half(dense))
    floored = dense.measure(half(dense), lambda costs: whole.accuracy / 2)
    assert (floored.accuracy, floored.loss, floored.images, floored.stopped) == (whole.accuracy, whole.loss, 100, False)


def test_a_limit_takes_the_same_pictures_for_all(dense: Dense, tmp_path: Path) -> None:
    """With `measure_images` every policy is measured on the same random part of the split."""
    measure = prepare(dense.recipe.model_copy(
        update={"search": dense.recipe.search.model_copy(update={"measure_images": 40})})).measure  # fmt: skip
    assert measure(dense.space.high).images == 40
    first, second = (measure.evaluate(measure.realise(dense.space.high)).scores for _ in range(2))
    assert (first == second).all() and len(first) == 40

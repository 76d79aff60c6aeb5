"""The predictor that a recipe names is the one that learns, and is kept as such."""

from typing import get_args

import numpy as np
import pytest
import torch

from amc.study.optimize import load_predictor, save_predictor
from amc.study.settings import SearchSettings
from amc_predictor import PREDICTORS


def test_a_recipe_may_name_every_predictor() -> None:
    """The key `search.predictor` takes the names of `PREDICTORS`, the ensemble by default."""
    field = SearchSettings.model_fields["predictor"]
    assert get_args(field.annotation) == tuple(PREDICTORS) and field.default == "ensemble"


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_is_kept_as_what_it_is(name: str, tmp_path) -> None:
    """Written and read by its name it is of the same class and predicts the same; a broken file is none."""
    rng = np.random.default_rng(0)
    policies = torch.as_tensor(rng.uniform(0.2, 1, (24, 4)))
    predictor = PREDICTORS[name](seed=0)
    predictor.fit(policies, 0.5 + 0.4 * policies.mean(dim=1))
    save_predictor(tmp_path / "predictor", predictor)
    again = load_predictor(tmp_path / "predictor", name)
    assert type(again) is PREDICTORS[name] and torch.equal(again.predict(policies)[0], predictor.predict(policies)[0])
    (tmp_path / "predictor").write_bytes(b"nothing")
    assert load_predictor(tmp_path / "predictor", name) is None

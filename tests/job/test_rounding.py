from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from amc.cost.layer_speeds import STEPS, choose, heaviest, measure_rounding, slowdowns
from amc.job.recipe import load_recipe, resolved_toml
from amc.job.rounding import recipe_rounding, settle_rounding
from amc.system.device import Compute
from amc.system.errors import UsageError
from amc.system.progress import Silent
from amc.zoo.call import Call


class Wide(nn.Module):
    """Two unlike layers wide enough to be measured, and two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.third = nn.Conv2d(64, 64, 3, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.fc = nn.Linear(64, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.third(self.second(self.first(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_slowdowns_are_relative_to_what_the_multiply_adds_would_take() -> None:
    """Times in proportion to them slow nothing down; blocks of 16 slow the odd multiples of 8 down, and those alone."""
    widths = range(64, 97, 8)
    fair = slowdowns({width: 1e-6 * width**2 for width in widths})
    assert fair == pytest.approx({8: 1.0, 16: 1.0})
    blocks = slowdowns({width: 1e-6 * (-(-width // 16) * 16) ** 2 for width in widths})
    assert blocks[8] > 1.15 and blocks[16] == pytest.approx(1.0)


def test_the_finest_step_that_is_not_slow_is_taken() -> None:
    """From the coarsest step down, as long as none is slow."""
    assert choose({8: (1.0, 1.1), 16: (1.0, 1.0)}) == 8
    assert choose({8: (1.3, 1.2), 16: (1.0, 1.1)}) == 16
    assert choose({8: (1.0, 1.0), 16: (1.4, 1.3)}) == 32
    assert choose({8: (), 16: ()}) == 8


def test_the_heaviest_unlike_layers_are_measured() -> None:
    """Layers that differ in nothing but their place count once; narrow and grouped ones not at all."""
    shapes = heaviest(Wide(), Call((torch.zeros(1, 3, 8, 8),)))
    assert [(shape.kind, shape.channels) for shape in shapes] == [(nn.Conv2d, 64), (nn.Linear, 48)]
    assert shapes[0].name == "Conv2d 3x3 / 1 on 8x8"


def test_a_measurement_is_short_and_says_what_it_saw() -> None:
    """A step of the grid, a positive slowdown for each layer, and a sentence."""
    found = measure_rounding(Wide(), Call((torch.zeros(1, 3, 8, 8),)), Compute.detect(), seconds=0.1)
    assert found.step in STEPS
    assert all(len(times) == 2 and min(times) > 0 for times in found.slowdown.values())
    assert f"step {found.step}" in found.text and "multiples of 8" in found.text


def test_a_network_without_wide_layers_keeps_the_default() -> None:
    """There is nothing to measure, and 8 is taken."""
    recipe = load_recipe(None, {"model.name": "tests.tiny:network", "data.name": "tests.tiny:pictures"})
    found = recipe_rounding(recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": "none"})}))
    assert found.step == 8 and "no layer" in found.text


def test_a_run_that_has_begun_keeps_its_step(tmp_path: Path) -> None:
    """`auto` in a folder with a recipe means that recipe's step; a number is left as it is."""
    (tmp_path / "recipe.toml").write_text(resolved_toml(load_recipe(None, {"surgery.round_to": 16})))
    auto, five = (load_recipe(None, {"surgery.round_to": step}) for step in ("auto", 5))
    assert settle_rounding(auto, tmp_path, Silent()).surgery.round_to == 16
    assert settle_rounding(five, tmp_path, Silent()) == five


@pytest.mark.parametrize("value", ["automatic", 0, 1025, True, 8.5])
def test_a_step_is_a_number_or_auto(value: object) -> None:
    """Anything else is refused, with the rule."""
    with pytest.raises(UsageError, match="from 1 to 1024, or auto"):
        load_recipe(None, {"surgery.round_to": value})

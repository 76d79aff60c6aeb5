"""What B-DISTIL is compared with."""

from __future__ import annotations

import pytest
import torch

from amc.bench.cascade.student_baselines import compare
from amc.cascade.methods.bdistil.game import GameSettings
from amc.cascade.methods.bdistil.students import ConvStudents
from tests.cascade.test_game import CLASSES, CPU, SHAPES, Matched, toy_splits


@pytest.mark.slow
def test_every_method_answers_at_the_costs_of_the_prefixes_and_learns() -> None:
    """All curves have nearly the same costs, and each ends with more than half of the answers right."""
    splits = toy_splits(SHAPES["series"])
    rules = GameSettings(rounds=2, passes=4.0, batch_size=32, worth=-10.0)
    students = ConvStudents(SHAPES["series"], CLASSES, width=8)
    halves = torch.arange(0, len(splits.validation), 2)
    found, curves = compare(
        Matched(splits).eval(), splits, CPU, students=students, rules=rules, held_out=halves, seed=1
    )
    assert found.outputs.shape == (len(halves), 2, CLASSES)
    names = [curve.method for curve in curves]
    assert names[0] == "B-DISTIL" and {"NO-RESCHED", "RESCHED", "uniform average", "residual boosting"} < set(names)
    for curve in curves:
        assert list(curve.macs) == sorted(curve.macs)
        if curve.method != "B-DISTIL, no reuse":  # a game of its own, which keeps students of its own
            assert curve.macs == pytest.approx(curves[0].macs, rel=0.15)
        assert curve.accuracies == pytest.approx(curve.right.double().mean(1).tolist())
        assert curve.accuracies[-1] > 0.5, curve.method

"""What `amc cascade` kept can be exported by `amc export`, whatever its stages are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amc.cascade.planning.family import Family
from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import StopRule
from amc.cascade.serving import reference_runner
from amc.cascade.serving.runtime import Answers
from amc.cascade.serving.saved_cascade import save_cascade
from amc.cascade.serving.server import export, load
from amc.system.errors import UsageError
from tests.cascade.cascades import assert_alike, cached_records, decided
from tests.cascade.test_saved_cascade import ABOUT, CPU, exits, family, offered, sequence

__all__ = ["family"]  # a fixture


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["networks and exits", "esn"])
def test_a_kept_cascade_is_exported_with_its_answers(kind: str, family: Family, tmp_path: Path) -> None:
    """The exported folder answers as the saved one where rounding does not decide; it is no source of another."""
    parts = {"networks and exits": lambda: (family.released, exits(family)), "esn": lambda: (sequence(family),)}[kind]()
    candidate = offered(family, *parts)
    rule = StopRule(SCORERS["rightness"](candidate.calibration), (0.45,) * (len(candidate.stages) - 1))
    save_cascade(tmp_path / "kept", candidate, rule, ABOUT)
    reported = export(tmp_path / "kept", tmp_path / "onnx")
    assert {"plan.json", "run.py", "stage0.onnx"} <= set(reported["files"]) and reported["bytes"] > 0
    inputs = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    answers = load(tmp_path / "kept", CPU).cascade.run(inputs)
    predictions, stop, cost = reference_runner.run(tmp_path / "onnx", inputs.numpy())
    sure = decided(cached_records(candidate.stages, inputs), rule)
    ran = Answers(answers.logits, torch.from_numpy(stop), answers.answered, torch.from_numpy(cost).double())
    assert_alike(ran, answers, sure)
    assert torch.equal(torch.from_numpy(predictions)[sure], answers.predictions[sure])
    assert_alike(load(tmp_path / "onnx").cascade.run(inputs), answers, sure)
    with pytest.raises(UsageError, match="is an export"):
        export(tmp_path / "onnx", tmp_path / "again")

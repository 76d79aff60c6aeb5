"""An exported cascade answers as the cascade does, without AMC."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.cascade.rules.scorers import SCORERS
from amc.cascade.rules.stop_rule import NEVER, StopRule
from amc.cascade.serving import reference_runner
from amc.cascade.serving.onnx_export import export_cascade, rule_of
from amc.cascade.serving.runtime import Cascade
from amc.cascade.stages.stage import NetworkStage, StageCost
from amc.system.errors import ModelError, UsageError
from tests.cascade.cascades import cached_records, decided, half_cascade, some_inputs, some_network, some_stages


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cascade]:
    inputs = some_inputs()
    cascade = half_cascade(some_stages(wrap=lambda module: module), inputs)
    return export_cascade(cascade, inputs[:3], tmp_path_factory.mktemp("export"), {"data": "noise"}), cascade


def with_plan(folder: Path, cascade: Cascade) -> None:
    """Put another stop rule of the same stages into the plan."""
    plan = json.loads((folder / "plan.json").read_text())
    thresholds = [*map(str, cascade.rule.thresholds), "-inf"]
    for number, (stage, threshold) in enumerate(zip(plan["stages"], thresholds, strict=True)):
        stage |= {"rule": rule_of(cascade.rule.scorer, number), "threshold": threshold}
    (folder / "plan.json").write_text(json.dumps(plan | {"best": cascade.rule.best}))


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("scorer", sorted(SCORERS))
def test_the_reference_runner_gives_the_stops_answers_and_costs_of_the_runtime(
    exported: tuple[Path, Cascade], scorer: str, best: bool
) -> None:
    """For every scorer, for a batch and for one example, where rounding does not decide."""
    folder, cascade = exported
    inputs, rule = some_inputs(), half_cascade(cascade.stages, some_inputs(seed=9), scorer, best).rule
    wanted = Cascade(cascade.stages, rule)
    with_plan(folder, wanted)
    for batch in (inputs, inputs[:1]):
        answers = wanted.run(batch)
        predictions, stop, cost = reference_runner.run(folder, batch.numpy())
        sure = decided(cached_records(wanted.stages, inputs), rule)[: len(batch)]
        for found, torchs in ((predictions, answers.predictions), (stop, answers.stop), (cost, answers.cost)):
            assert torch.equal(torch.from_numpy(found)[sure].double(), torchs[sure].double())


def test_the_folder_runs_by_itself_with_numpy_and_onnxruntime_alone(
    exported: tuple[Path, Cascade], tmp_path: Path
) -> None:
    """A fresh process that imports neither torch nor amc prints the same answers."""
    folder, cascade = exported
    with_plan(folder, cascade)
    inputs = some_inputs(7)
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    code = f"import runpy, sys; sys.argv = ['run.py', {str(folder)!r}, {str(tmp_path / 'inputs.npy')!r}]; "
    code += "runpy.run_path('run.py', run_name='__main__'); assert not {'torch', 'amc'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    answers = cascade.run(inputs)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    sure = decided(cached_records(cascade.stages, inputs), cascade.rule)
    for name, wanted in (("prediction", answers.predictions), ("stage", answers.stop), ("cost", answers.cost)):
        assert torch.tensor([line[name] for line in lines])[sure].tolist() == wanted[sure].tolist()


def test_the_runner_is_sixty_lines_at_most_and_imports_three_packages() -> None:
    """Others can read it as the definition of the format."""
    text = Path(reference_runner.__file__).read_text()
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    assert len(text.splitlines()) <= 60
    assert names == {"json", "sys", "numpy", "onnxruntime"} and "amc" not in text.split()


def test_each_stage_takes_only_what_it_reads_and_what_nobody_reads_is_dropped(exported: tuple[Path, Cascade]) -> None:
    """The plan names what goes in and what is kept after each stage."""
    folder, _ = exported
    plan = json.loads((folder / "plan.json").read_text())
    exits = ["1:body.0", "1:body.1"]
    assert [stage["takes"] for stage in plan["stages"]] == [["inputs"], ["inputs"], exits, ["inputs"]]
    assert [stage["keeps"] for stage in plan["stages"]] == [["inputs"], [*exits, "inputs"], ["inputs"], []]
    assert plan["about"] == {"data": "noise"} and plan["inputs"]["shape"] == ["n", 1, 8, 8]


def test_thresholds_that_nothing_or_everything_reaches_survive_json(exported: tuple[Path, Cascade]) -> None:
    """Infinite thresholds send every example to the last or the first stage."""
    folder, cascade = exported
    for thresholds, stage in (((NEVER,) * 3, 3), ((-NEVER,) * 3, 0)):
        with_plan(folder, Cascade(cascade.stages, StopRule(cascade.rule.scorer, thresholds)))
        assert set(reference_runner.run(folder, some_inputs().numpy())[1].tolist()) == {stage}


def test_a_stage_that_onnx_cannot_express_is_named(tmp_path: Path) -> None:
    """The message names the stage."""

    class Wayward(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1)[:, :4] * (2.0 if float(inputs.sum()) > 0 else 1.0)

    stages = (
        NetworkStage("tame", some_network(0), StageCost("a", 1)),
        NetworkStage("wayward", Wayward(), StageCost("b", 1)),
    )
    cascade = Cascade(stages, StopRule(SCORERS["confidence"](cached_records(stages, some_inputs())), (0.5,)))
    with pytest.raises(ModelError, match="expressible in ONNX, but wayward is not"):
        export_cascade(cascade, some_inputs(3), tmp_path)
    with pytest.raises(UsageError, match="at least two inputs, but got 1"):
        export_cascade(cascade, some_inputs(1), tmp_path)

"""A cascade as files that need no AMC: one ONNX network a stage, a JSON plan, and a runner of sixty lines.

What stages hand on becomes named inputs and outputs: `inputs` are the cascade's own, `K:PATH` is what stage K put into
the state under PATH, and each stage takes only what it reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cascade.rules.scorers import FEATURE_SCORERS, AccuracyScorer, CorrectnessScorer, DeferralScorer, FeatureScorer
from amc.cascade.rules.stop_rule import Scorer
from amc.cascade.serving import reference_runner
from amc.cascade.serving.runtime import Cascade
from amc.cascade.serving.tensor_tree import filled, leaves
from amc.cascade.stages.records import FEATURES
from amc.cascade.stages.stage import Stage, State
from amc.system.errors import ModelError, UsageError
from amc.system.files import write_json, write_text, write_whole

FORMAT = "amc-cascade-onnx/1"
PLAN, RUNNER = "plan.json", "run.py"
TOLERANCE = 1e-3  # of the logits of ONNX Runtime against torch's, relative to the largest


@torch.inference_mode()
def export_cascade(cascade: Cascade, example: Tensor, folder: Path, about: dict[str, Any] | None = None) -> Path:
    """Write `folder`/plan.json, stage0.onnx and so on, and run.py; each network is checked against torch's answers.

    Args:
        example: at least two inputs (b, ...), on the cascade's device; the networks take any number.
        about: put into the plan as it is; JSON-able.

    Raises:
        UsageError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: a stage cannot be expressed in ONNX, or answers otherwise there.
    """
    need_onnx("onnx", "onnxscript", "onnxruntime")
    if len(example) < 2:
        raise UsageError(f"an export needs an example of at least two inputs, but got {len(example)}; give a batch")
    names = {id(example): "inputs"}
    records: list[dict[str, Any]] = []
    state: State = {}
    for number, stage in enumerate(cascade.stages):
        traced = _Traced(stage, example, state, names, last=number == len(cascade.stages) - 1)
        takes = _write_onnx(traced, folder / f"stage{number}.onnx", number)
        records.append(
            {
                "name": stage.name,
                "file": f"stage{number}.onnx",
                "cost": cascade.costs[number],
                "takes": takes,
                "gives": traced.gives(number),
                "rule": rule_of(cascade.rule.scorer, number),
                "threshold": _number([*cascade.rule.thresholds, -float("inf")][number]),
            }
        )
        names |= {id(tensor): name for tensor, name in zip(traced.new, traced.gives(number)[1:], strict=True)}
        state = traced.state_after
    for number, record in enumerate(records):
        wanted = {name for later in records[number + 1 :] for name in later["takes"]}
        had = {"inputs", *(name for earlier in records[: number + 1] for name in earlier["gives"])}
        record["keeps"] = sorted(wanted & had)
    plan = {
        "format": FORMAT,
        "inputs": {"shape": ["n", *example.shape[1:]], "dtype": str(example.dtype).removeprefix("torch.")},
        "best": cascade.rule.best,
        "scorer": cascade.rule.scorer.to_json(),
        "about": about or {},
        "stages": records,
    }
    write_json(folder / PLAN, plan)
    write_text(folder / RUNNER, Path(reference_runner.__file__).read_text())
    return folder


def need_onnx(*packages: str) -> None:
    """Raises `UsageError` where one of the packages is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UsageError(
                f"ONNX needs the package {package}, but it is not installed; pip install 'amc-compress[onnx]'"
            )


def rule_of(scorer: Scorer, stage: int) -> dict[str, Any]:
    """What a scorer says at one stage, in the three forms that the runner knows.

    `column` of the features (for patience, `times` the visited stages, rounded); `values` of a step function of the
    confidence with `edges`; or `chances`, a signed sum of logistic functions of one, the features and the log-odds.

    Raises:
        UsageError: the scorer is of none of these forms.
    """
    if isinstance(scorer, FeatureScorer):
        return {
            "column": FEATURES.index(FEATURE_SCORERS[scorer.kind]),
            "times": stage + 1 if scorer.kind == "patience" else 0,
        }
    if isinstance(scorer, AccuracyScorer):
        return scorer.stages[stage].to_json()
    if isinstance(scorer, CorrectnessScorer):
        return {"chances": [[1, scorer.this[stage].tolist()]]}
    if isinstance(scorer, DeferralScorer):
        return {"chances": [[1, scorer.this[stage].tolist()], [-1, scorer.last[stage].tolist()]]}
    raise UsageError(
        f"a scorer must be one of amc.cascade.rules.scorers to be exported, but is {scorer.kind!r}; plan anew"
    )


def _number(threshold: float) -> float | str:
    """JSON has no infinity; `float` reads both forms."""
    return threshold if abs(threshold) < float("inf") else str(threshold)


class _Traced(nn.Module):
    """One stage as a function from tensors to tensors, and what it did with the example.

    Attributes:
        names: of the arguments of `forward`: the inputs and the state's leaves, each tensor once.
        new: leaves of the state that this stage made; none of the last one's.
    """

    def __init__(self, stage: Stage, example: Tensor, state: State, names: dict[int, str], last: bool) -> None:
        super().__init__()
        self.stage, self.before = stage, state
        self.components = nn.ModuleList(_modules(list(vars(stage).values())))  # so that their weights are found
        given = {id(tensor): tensor for tensor in [example, *(tensor for _, tensor in leaves(state))]}
        self.arguments = tuple(given.values())
        self.names = [names[key] for key in given]
        self.places = [list(given).index(id(tensor)) for _, tensor in leaves(state)]
        self.logits, self.state_after = stage.run(example, state)
        after = [] if last else list(leaves(self.state_after))  # nobody reads what the last one hands on
        made = {id(tensor): (path, tensor) for path, tensor in after if id(tensor) not in given}
        self.paths, self.new = [path for path, _ in made.values()], [tensor for _, tensor in made.values()]

    def gives(self, number: int) -> list[str]:
        return [f"{number}:logits", *(f"{number}:{path}" for path in self.paths)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = filled(self.before, iter([tensors[place] for place in self.places]))
        logits, after = self.stage.run(tensors[0], state)
        found = dict(leaves(after))
        return (logits.float(), *(found[path] for path in self.paths))


def _modules(values: Any) -> Iterator[nn.Module]:
    for value in values:
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, (list, tuple, dict)):
            yield from _modules(value.values() if isinstance(value, dict) else value)


def _write_onnx(traced: _Traced, path: Path, number: int) -> list[str]:
    """Export, check and write one stage; returns the names of what it reads."""
    gives = traced.gives(number)
    shapes = ({0: torch.export.Dim.DYNAMIC},) * len(traced.arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own making; what comes out is checked below
            program = torch.onnx.export(
                traced.eval(),
                traced.arguments,
                input_names=traced.names,
                output_names=gives,
                dynamic_shapes=(shapes,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"a stage must be expressible in ONNX, but {traced.stage.name} is not: {reason}; run it by AMC itself"
        ) from error
    assert program is not None
    model = program.model_proto
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    takes = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(takes)
    data = model.SerializeToString()
    _check(traced, data, [value.name for value in takes])
    write_whole(path, lambda file: file.write(data))
    return [value.name for value in takes]


def _check(traced: _Traced, data: bytes, takes: list[str]) -> None:
    """Raises `ModelError` unless ONNX Runtime answers as torch does, to a whole batch and to one input."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    given = {
        name: tensor.cpu().contiguous().numpy() for name, tensor in zip(traced.names, traced.arguments, strict=True)
    }
    expected = traced.logits.float().cpu()
    for count in (len(expected), 1):
        found = torch.from_numpy(session.run(None, {name: given[name][:count] for name in takes})[0])
        worst = float((found - expected[:count]).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not worst <= TOLERANCE:
            raise ModelError(
                f"the logits of {traced.stage.name} in ONNX must be torch's up to {TOLERANCE:g} of the largest, but "
                f"are off by {worst:.2g} for {count} inputs; run it by AMC itself"
            )

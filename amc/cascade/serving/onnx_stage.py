"""The stages of an exported cascade, run by ONNX Runtime under the same runtime as torch's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc.cascade.rules.scorers import scorer_from_json
from amc.cascade.rules.stop_rule import StopRule
from amc.cascade.serving.onnx_export import FORMAT, PLAN, need_onnx
from amc.cascade.serving.runtime import Cascade
from amc.cascade.stages.stage import StageCost, State
from amc.system.errors import AmcError, ModelError


@dataclass(frozen=True, eq=False)
class OnnxStage:
    """One network of an export; the state maps the names of its plan to tensors.

    Attributes:
        takes: names of what the network reads; `inputs` are the cascade's.
        gives: names of its outputs, the logits first.
        keeps: names of what later stages read.
    """

    name: str
    cost: StageCost
    session: Any
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    keeps: frozenset[str]

    def run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        held = {**state, "inputs": inputs}
        outputs = self.session.run(None, {name: held[name].contiguous().numpy() for name in self.takes})
        held |= dict(zip(self.gives, map(torch.from_numpy, outputs), strict=True))
        kept = {name: tensor for name, tensor in held.items() if name in self.keeps and name != "inputs"}
        return held[self.gives[0]], kept


def read_plan(folder: Path) -> dict[str, Any]:
    """What plan.json says. Raises `ModelError` where it is missing or no plan."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if plan["format"] != FORMAT:
            raise ValueError(f"its format is {plan['format']!r}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / PLAN} must be a plan of format {FORMAT}, but {error}; export it anew") from error
    found: dict[str, Any] = plan
    return found


def load_exported(folder: Path, threads: int = 0) -> Cascade:
    """The cascade that `export_cascade` wrote, on the CPU; `threads` for one stage, 0 for all cores.

    Raises:
        UsageError: ONNX Runtime is not installed.
        ModelError: a file is missing or is not what the plan says.
    """
    need_onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    plan, before, stages = read_plan(folder), 0.0, []
    try:
        for record in plan["stages"]:
            path = folder / record["file"]
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            parts = (tuple(record["takes"]), tuple(record["gives"]), frozenset(record["keeps"]))
            stages.append(
                OnnxStage(record["name"], StageCost(record["file"], record["cost"] - before), session, *parts)
            )
            before = record["cost"]
        thresholds = tuple(float(record["threshold"]) for record in plan["stages"][:-1])
        rule = StopRule(scorer_from_json(plan["scorer"]), thresholds, plan["best"])
    except AmcError:
        raise
    except Exception as error:  # ONNX Runtime has errors of its own for a missing or damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder} must hold an exported cascade whole, but {reason}; export it anew") from error
    return Cascade(tuple(stages), rule)

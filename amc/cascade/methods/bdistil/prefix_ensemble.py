"""A progressive ensemble: students in order, each prefix of which answers; on disk without pickle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cascade.methods.bdistil.students import AdoptedStudent, ConvStudent
from amc.cascade.methods.bdistil.teacher_outputs import State
from amc.cascade.stages.saved_tensors import SavedKind
from amc.cascade.stages.stage import ExitStage, Stage, StageCost
from amc.cost.trace import digest_tensors
from amc.release.archive import load_network, read_architecture, save_network
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import RunError
from amc.system.factory import one_line
from amc.zoo.call import Call

SAVED = SavedKind("amc-ensemble/1", "an ensemble", "students.safetensors", "ensemble.json")
CHAIN = "b-distil"
ON_CPU = Compute(torch.device("cpu"), bfloat16=False)


class Step(nn.Module):
    """A student as the body of a stage: from inputs, or from what the students before have left, to what it leaves.

    The state is (inputs, features (b, ...) of the last student, outputs (b, k, classes) of all k so far).
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(state, Tensor):
            features, outputs = self.student(state, None)
            return state, features, outputs[:, None]
        inputs, before, earlier = state
        features, outputs = self.student(inputs, before)
        return inputs, features, torch.cat([earlier, outputs[:, None]], 1)


class Prefix(nn.Module):
    """The answer of the first k students: their outputs, weighted."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, state: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits: Tensor = torch.matmul(self.weights[None], state[2].float())[:, 0]
        return logits


@dataclass(frozen=True, eq=False)
class Ensemble:
    """T students and the weights of every prefix.

    Attributes:
        steps: in `eval` mode.
        weights: of prefix k, k weights.
        example: (1, ...) inputs, on which multiply-adds are counted.
    """

    steps: tuple[Step, ...]
    weights: tuple[Tensor, ...]
    example: Tensor

    def stages(self, chain: str = CHAIN) -> tuple[ExitStage, ...]:
        """One per prefix; `amc.cascade.stages.stage.without` leaves out answers, not students.

        Multiply-adds are counted on the example, a student's in the body of its stage, the weighting in the head.
        """
        stages, state = list[ExitStage](), self.example
        for number, (step, weights) in enumerate(zip(self.steps, self.weights, strict=True), 1):
            head = Prefix(weights).to(self.example.device)
            with torch.no_grad():
                reached: Any = step(state)
            cost = StageCost(chain, count_cut_macs(step, Call((state,))), count_cut_macs(head, Call((reached,))))
            stages.append(ExitStage(f"{chain} {number}", (step,), head, cost))
            state = reached
        return tuple(stages)

    def save(self, folder: Path) -> None:
        """Write the ensemble; students that are trained networks stand there as releases, `student-K`.

        Raises:
            StorageError: the folder cannot be written.
        """
        records, tensors = [], {f"votes.{k}": weights for k, weights in enumerate(self.weights)}
        for number, step in enumerate(self.steps):
            student: Any = step.student
            if isinstance(student, AdoptedStudent):
                assert student.source is not None  # of a member of a run's family
                release = f"student-{number}"
                save_network(folder / release, student.whole(), student.source, tuple(self.example.shape[1:]))
                records.append({"kind": "adopted", "settings": student.settings, "release": release})
                continue
            records.append({"kind": "conv", "settings": student.settings})
            kept = {f"{number}.{name}": tensor for name, tensor in student.state_dict().items()}
            tensors |= kept
        SAVED.write(folder, tensors, {"input_shape": list(self.example.shape[1:]), "students": records})


def load_ensemble(folder: str | Path) -> Ensemble:
    """The ensemble in `folder`, in `eval` mode, on the CPU.

    Raises:
        RunError: there is no ensemble in `folder`, or it is broken.
    """
    folder = Path(folder)
    record, tensors = SAVED.read(folder)
    try:
        example = torch.randn(1, *record["input_shape"], generator=torch.Generator().manual_seed(0))
        steps, weights = [], []
        for number, described in enumerate(record["students"]):
            student: nn.Module
            settings = described["settings"]
            if described["kind"] == "conv":
                student = ConvStudent(**{**settings, "input_shape": tuple(settings["input_shape"])})
                prefix = f"{number}."
                student.load_state_dict(
                    {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
                )
            else:
                network = load_network(folder / described["release"])
                student = AdoptedStudent(network, example, settings["scale"], settings["reach"])
                student.source = read_architecture(folder / described["release"]).source
            steps.append(Step(ON_CPU.place(student).eval().requires_grad_(False)))  # laid out as it was trained
            weights.append(tensors[f"votes.{number}"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"{folder} must hold {SAVED.what} whole, but: {one_line(error)[:200]}; make it anew") from None
    return Ensemble(tuple(steps), tuple(weights), example)


@dataclass(frozen=True, eq=False)
class StudentsComponent:
    """The students of a teacher, each prefix of which answers."""

    name: str
    ensemble: Ensemble

    kind = "b-distil"

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return self.ensemble.stages()

    @cached_property
    def digest(self) -> str:
        tensors = {f"votes.{k}": weights for k, weights in enumerate(self.ensemble.weights)}
        for number, step in enumerate(self.ensemble.steps):
            tensors |= {f"{number}.{name}": tensor for name, tensor in step.state_dict().items()}
        return digest_tensors(tensors)

    def save(self, folder: Path) -> None:
        self.ensemble.save(folder)

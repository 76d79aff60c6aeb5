"""A progressive ensemble: students in order, each prefix of which answers; on disk without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from amc.cascade.pool import State
from amc.cascade.stage import ExitStage, StageCost
from amc.cascade.students import AdoptedStudent, ConvStudent
from amc.release.archive import load_network, read_architecture, save_network
from amc.surgery.flop_counter import count_cut_macs
from amc.system.device import Compute
from amc.system.errors import RunError
from amc.system.factory import one_line
from amc.system.files import write_json, write_whole
from amc.zoo.call import Call
from amc.zoo.networks.source import ModelSource

FORMAT = "amc-ensemble/1"
TENSORS, RECORD = "students.safetensors", "ensemble.json"
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
        votes: of prefix k, k weights.
        example: (1, ...) inputs, on which multiply-adds are counted.
    """

    steps: tuple[Step, ...]
    votes: tuple[Tensor, ...]
    example: Tensor

    def stages(self, chain: str = CHAIN) -> tuple[ExitStage, ...]:
        """One per prefix; leaving some out (`amc.cascade.stage.without`) leaves out their answers, not their students.

        Multiply-adds are counted on the example, a student's in the body of its stage, the weighting in the head.
        """
        stages, state = list[ExitStage](), self.example
        for number, (step, weights) in enumerate(zip(self.steps, self.votes, strict=True), 1):
            head = Prefix(weights).to(self.example.device)
            with torch.no_grad():
                reached: Any = step(state)
            cost = StageCost(chain, count_cut_macs(step, Call((state,))), count_cut_macs(head, Call((reached,))))
            stages.append(ExitStage(f"{chain} {number}", (step,), head, cost))
            state = reached
        return tuple(stages)

    def save(self, folder: Path) -> None:
        """Write the ensemble; students that are networks of a known source stand there as releases, `student-k`.

        Raises:
            StorageError: the folder cannot be written.
        """
        records, tensors = [], {f"votes.{k}": weights.cpu() for k, weights in enumerate(self.votes)}
        for number, step in enumerate(self.steps):
            student: Any = step.student
            adopted = isinstance(student, AdoptedStudent)
            records.append({"kind": "adopted" if adopted else "conv", "settings": student.settings})
            if adopted and student.source is not None:
                records[-1]["release"] = f"student-{number}"
                save_network(
                    folder / f"student-{number}", student.whole(), student.source, tuple(self.example.shape[1:])
                )
            kept = {n: t for n, t in student.state_dict().items() if "release" not in records[-1] or _beside(n)}
            tensors |= {f"{number}.{name}": tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
        record = {"format": FORMAT, "input_shape": list(self.example.shape[1:]), "students": records}
        payload = save_tensors(tensors)
        write_whole(folder / TENSORS, lambda file: file.write(payload))
        write_json(folder / RECORD, record)


def load_ensemble(
    folder: str | Path, networks: Sequence[nn.Module] | Callable[[int], nn.Module] | None = None
) -> Ensemble:
    """The ensemble in `folder`, in `eval` mode, on the CPU.

    Args:
        networks: skeletons, by the student's number, of students that are networks of no known source.

    Raises:
        RunError: there is no ensemble in `folder`, it is broken, or it needs `networks`.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise RunError(f"{folder / RECORD} must be of format {FORMAT}, but is {record['format']!r}")
        tensors = load_tensors((folder / TENSORS).read_bytes())
        example = torch.randn(1, *record["input_shape"], generator=torch.Generator().manual_seed(0))
        steps, votes = [], []
        for number, described in enumerate(record["students"]):
            student = _student(described, folder, number, example, networks)
            prefix = f"{number}."
            mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            student.load_state_dict(mine, strict="release" not in described)
            steps.append(Step(ON_CPU.place(student).eval().requires_grad_(False)))  # laid out as it was trained
            votes.append(tensors[f"votes.{number}"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{folder} must hold a whole ensemble, but: {one_line(error)[:200]}; save it again") from None
    return Ensemble(tuple(steps), tuple(votes), example)


def _student(
    described: dict[str, Any],
    folder: Path,
    number: int,
    example: Tensor,
    networks: Sequence[nn.Module] | Callable[[int], nn.Module] | None,
) -> nn.Module:
    settings = described["settings"]
    if described["kind"] == "conv":
        return ConvStudent(**{**settings, "input_shape": tuple(settings["input_shape"])})
    source: ModelSource | None = None
    if "release" in described:
        place = folder / described["release"]
        network, source = load_network(place), read_architecture(place).source
    elif networks is None:
        raise RunError(
            f"student {number} of {folder} is a network of no known source; give its skeleton as networks=..."
        )
    else:
        network = networks(number) if callable(networks) else networks[number]
    return AdoptedStudent(network, example=example, source=source, **settings)


def _beside(name: str) -> bool:
    """Whether a tensor of an adopted student is none of its network's."""
    return name.startswith("connection.")

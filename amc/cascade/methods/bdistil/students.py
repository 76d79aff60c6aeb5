"""B-DISTIL's students: small networks that answer inside a range and may read what the one before them has computed.

A student is called with (inputs, features of the student before or None) and gives (its own features, its outputs
(b, classes)), |outputs| < reach. They are drawn from a class of functions, which grows as rounds fail: students that
stand alone and students that read, and networks that are trained already, such as pruned variants of the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil, log2
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amc.cascade.methods.bdistil.teacher_outputs import OutputRange, centred
from amc.surgery.flop_counter import count_cut_macs
from amc.system.errors import UsageError
from amc.system.eval_mode import evaluating
from amc.zoo.call import Call
from amc.zoo.networks.source import ModelSource

SIDE = {1: 32, 2: 8}  # a small student's map is at most that long
INSIDE = 0.999  # of the reach: tanh rounds to 1
KERNEL = {1: 5, 2: 3}
LAYERS: dict[int, tuple[Any, Any]] = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d)}


@dataclass(frozen=True, eq=False)
class Draw:
    """One candidate for a round.

    Attributes:
        name: what it is, in a word or two.
        make: a fresh copy of it; where it is random, from torch's global generator.
        lr: it is trained with; 0: it is taken as it is, its outputs depending on the inputs alone.
    """

    name: str
    make: Callable[[], nn.Module]
    lr: float


class Students(Protocol):
    """Where students come from.

    Attributes:
        sizes: of the class of functions, which grows as rounds fail.
    """

    @property
    def sizes(self) -> int: ...

    def draws(self, number: int, size: int, before: Tensor | None, within: OutputRange) -> Sequence[Draw]:
        """The candidates of round `number`, from 0, in the class `size`, from 0: the game keeps the best.

        `before` are the features (1, ...) that the student before leaves on one example.
        """
        ...


class ConvStudent(nn.Module):
    """A strided stem, joined by the features of the student before where it reads them, and one residual block.

    Args:
        input_shape: (channels, length) or (channels, height, width).
        width: channels of the first convolution; the map that is handed on has twice as many.
        reads: channels of the features read: a map as large as this student's own, or a vector; 0: it stands alone.
        reach: B; outputs are B tanh(. / B), a little less.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, width: int, reads: int, reach: float) -> None:
        super().__init__()
        dims = len(input_shape) - 1
        self.settings = {
            "input_shape": list(input_shape), "classes": classes, "width": width, "reads": reads, "reach": reach,
        }  # fmt: skip
        self.reads, self.reach = reads, reach
        halvings = max(2, ceil(log2(max(input_shape[1:]) / SIDE[dims])))
        widths = [input_shape[0], *([width] * (halvings - 1)), 2 * width]
        self.stem = nn.Sequential(*(_convolution(dims, *pair, 2) for pair in pairwise(widths)))
        self.enter = _convolution(dims, 2 * width + reads, 2 * width, 1)
        self.leave = _convolution(dims, 2 * width, 2 * width, 1, active=False)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, inputs: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        own = joined = self.stem(inputs)
        if self.reads:
            assert before is not None
            if before.ndim == 2:
                before = before.view(*before.shape, *[1] * (own.ndim - 2)).expand(-1, -1, *own.shape[2:])
            joined = torch.cat([own, before], 1)
        features = torch.relu(self.leave(self.enter(joined)) + own)
        return features, bent(self.classifier(features.flatten(2).mean(2)), self.reach)


def _convolution(dims: int, entering: int, leaving: int, stride: int, active: bool = True) -> nn.Sequential:
    convolution, norm = LAYERS[dims]
    layers = [convolution(entering, leaving, KERNEL[dims], stride, KERNEL[dims] // 2, bias=False), norm(leaving)]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))


def bent(logits: Tensor, reach: float) -> Tensor:
    """Centred logits bent smoothly into (-reach, reach), and never to its ends, where the barrier is infinite."""
    return INSIDE * reach * torch.tanh(centred(logits.float()) / reach)


class AdoptedStudent(nn.Module):
    """A trained classifier as a student: what its last linear layer reads are its features, its logits the outputs.

    Args:
        network: its last linear layer is found; its logits are what it hands on where there is none.
        example: (1, ...) inputs.
        scale: from the network's logits to outputs, the teacher's scale.
        source: what the network's skeleton can be built from again, for saving.
    """

    def __init__(
        self, network: nn.Module, example: Tensor, scale: float, reach: float, source: ModelSource | None = None
    ) -> None:
        super().__init__()
        self.network, self.last, self.source = network, last_linear(network, example), source
        self.settings = {"scale": scale, "reads": 0, "reach": reach}  # it reads no other student
        self.scale, self.reach = scale, reach
        self.classifier: nn.Module = nn.Identity()
        if self.last is not None:
            self.classifier = network.get_submodule(self.last)
            network.set_submodule(self.last, nn.Identity())

    def forward(self, inputs: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        vector = self.network(inputs)
        return vector, bent(self.scale * self.classifier(vector), self.reach)

    def whole(self) -> nn.Module:
        """A copy of the network with its last layer in its place."""
        network = copy.deepcopy(self.network)
        if self.last is not None:
            network.set_submodule(self.last, copy.deepcopy(self.classifier))
        return network


@torch.no_grad()
def last_linear(network: nn.Module, example: Tensor) -> str | None:
    """The name of the linear layer whose output is the network's, if there is one."""
    with evaluating(network):
        logits = network(example)
        named: list[tuple[str, nn.Module]] = list(network.named_modules())
        for name, module in reversed(named):
            if name and isinstance(module, nn.Linear):
                network.set_submodule(name, nn.Identity())
                try:
                    vector = network(example)
                    if vector.ndim == 2 and torch.equal(module(vector), logits):
                        return name
                except Exception:  # what a network without one of its layers raises is any error
                    continue
                finally:
                    network.set_submodule(name, module)
    return None


@dataclass(frozen=True)
class ConvStudents:
    """Small convolutional students for maps (c, h, w) and series (c, l): one that reads the student before, one not.

    One that reads starts from more, one that stands alone errs more by itself: which is better differs from round to
    round. Each class is twice as wide as the one before.

    Attributes:
        width: channels of the first convolution.
        reuse: whether the student before may be read; if not, both stand alone and differ in where they start.
    """

    input_shape: tuple[int, ...]
    classes: int
    width: int = 16
    reuse: bool = True
    sizes: int = 2
    lr: float = 0.015

    def __post_init__(self) -> None:
        if len(self.input_shape) - 1 not in SIDE:
            raise UsageError(
                f"small students take inputs (channels, length) or (channels, height, width), but these are of shape "
                f"{self.input_shape}; give a factory of your own networks"
            )

    def draws(self, number: int, size: int, before: Tensor | None, within: OutputRange) -> Sequence[Draw]:
        reads = 0 if before is None or not self.reuse else before.shape[1]
        return [
            Draw("reading" if read else "alone", partial(self.student, size, read, within.reach), self.lr)
            for read in (0, reads)
        ]

    def student(self, size: int = 0, reads: int = 0, reach: float = 1.0) -> ConvStudent:
        """One of the class `size`; `reads` as in `ConvStudent`."""
        return ConvStudent(self.input_shape, self.classes, self.width * 2**size, reads, reach)


@dataclass(frozen=True, eq=False)
class WithTrained:
    """Fresh students, and beside them in every round networks that are trained already, taken as they are.

    Attributes:
        networks: name -> the network, and what its skeleton can be built from.
    """

    fresh: Students
    networks: Mapping[str, tuple[nn.Module, ModelSource | None]]
    example: Tensor

    @property
    def sizes(self) -> int:
        return self.fresh.sizes

    def draws(self, number: int, size: int, before: Tensor | None, within: OutputRange) -> Sequence[Draw]:
        def make(network: nn.Module, source: ModelSource | None) -> nn.Module:
            return AdoptedStudent(copy.deepcopy(network), self.example, within.scale, within.reach, source)

        trained = [Draw(name, partial(make, *given), 0.0) for name, given in self.networks.items()]
        return [*self.fresh.draws(number, size, before, within), *trained]


def small_students(teacher_macs: float, example: Tensor, classes: int, share: float = 0.05) -> ConvStudents:
    """Convolutional students, of which the smallest that reads is of about `share` of the teacher's multiply-adds."""
    width = width_for(share * teacher_macs, example, classes, reads=True)
    return ConvStudents(tuple(example.shape[1:]), classes, width)


def width_for(macs: float, example: Tensor, classes: int, reads: bool) -> int:
    """The width from 4 to 256 whose student's multiply-adds are nearest to `macs`; they rise with the width."""

    def counted(width: int) -> int:
        return conv_macs(ConvStudents(tuple(example.shape[1:]), classes, width), example, reads)

    low, high = 4, 256
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if counted(middle) <= macs else (low, middle)
    return min((low, high), key=lambda width: abs(counted(width) - macs))


def conv_macs(students: ConvStudents, example: Tensor, reads: bool) -> int:
    """Multiply-adds of one of these students, which reads one like itself or stands alone; `example` is (1, ...)."""
    first = students.student().to(example.device).eval()
    if not reads:
        return count_cut_macs(first, Call((example, None)))
    with torch.no_grad():
        features, _ = first(example, None)
    second = students.student(reads=features.shape[1]).to(example.device).eval()
    return count_cut_macs(second, Call((example, features)))

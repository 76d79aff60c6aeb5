"""`--round-to auto`: the step of keep-counts, from a short measurement of this machine's layer speeds.

Kernels work on blocks of channels: a width that does not fill its blocks may run slower than the next one that does,
and is then not worth having. The heaviest layers of the network are run at widths between two multiples of 32, at their
own kernel, stride and image size, in the number format and memory layout that trials use. A width's slowdown is its
time over the one that its multiply-adds would take between those two; a step is fine where its odd multiples slow down
by no more than `TOLERANCE`, and the finest such step is taken: finer policies are better policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from amc.surgery.layers import CONVOLUTIONS, TRANSPOSED
from amc.system.device import Compute
from amc.system.eval_mode import evaluating
from amc.zoo.call import Call

STEPS = (8, 16, 32)  # each divides the next; the last is the measure of the others
TOLERANCE = 1.15
LAYERS = 3  # the heaviest ones, unlike each other
BATCH = 32
SECONDS = 3.0  # of measuring, all in all
ROUNDS = (3, 40)  # fewest and most; the fastest of them counts


@dataclass(frozen=True)
class Shape:
    """A layer as far as its speed goes: its class, its input and its settings, and how wide it is."""

    kind: type[nn.Module]
    size: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]
    channels: int

    def layer(self, width: int) -> nn.Module:
        """The layer with `width` channels in and out."""
        return self.kind(width, width, **dict(self.settings))

    def inputs(self, width: int) -> Tensor:
        """(BATCH, width, ...) or, for linear layers, (BATCH, ..., width)."""
        last = issubclass(self.kind, nn.Linear)
        return torch.randn(BATCH, *self.size, width) if last else torch.randn(BATCH, width, *self.size)

    @property
    def name(self) -> str:
        kernel = dict(self.settings).get("kernel_size", ())
        size = "x".join(map(str, self.size)) or "1"
        stride = f" / {max(dict(self.settings)['stride'])}" if kernel else ""
        return " ".join([self.kind.__name__, "x".join(map(str, kernel)) + stride, f"on {size}"]).replace("  ", " ")


@dataclass(frozen=True)
class Rounding:
    """What was measured, and the step that follows.

    Attributes:
        step: of keep-counts.
        slowdown: step -> time of its odd multiples over that of full blocks at the same multiply-adds, for each layer.
        layers: which ones were measured.
    """

    step: int
    slowdown: dict[int, tuple[float, ...]]
    layers: tuple[str, ...]

    @property
    def text(self) -> str:
        parts = [f"{mean(times):.2f}x at multiples of {step}" for step, times in self.slowdown.items() if times]
        if not parts:
            return f"round-to auto: step {self.step}; no layer is wide enough to be measured"
        return (
            f"round-to auto: step {self.step}; time against full blocks of {STEPS[-1]} channels: {', '.join(parts)} "
            f"({', '.join(self.layers)})"
        )


def measure_rounding(model: nn.Module, example: Call, compute: Compute, seconds: float = SECONDS) -> Rounding:
    """Measure the heaviest layers of `model` and choose the step."""
    shapes = heaviest(model, example)
    slowdown: dict[int, list[float]] = {step: [] for step in STEPS[:-1]}
    for shape in shapes:
        low = max(STEPS[-1], shape.channels // 2 // STEPS[-1] * STEPS[-1])
        times = layer_times(shape, range(low, low + STEPS[-1] + 1, STEPS[0]), compute, seconds / len(shapes))
        for step, found in slowdowns(times).items():
            slowdown[step].append(found)
    measured = {step: tuple(found) for step, found in slowdown.items()}
    return Rounding(choose(measured), measured, tuple(shape.name for shape in shapes))


def choose(slowdown: dict[int, tuple[float, ...]]) -> int:
    """The finest step from which on no coarser one is slow; the default, 8, where nothing was measured."""
    chosen = STEPS[-1]
    for step in reversed(STEPS[:-1]):
        if slowdown[step] and mean(slowdown[step]) > TOLERANCE:
            break
        chosen = step
    return chosen


def slowdowns(times: dict[int, float]) -> dict[int, float]:
    """Step -> mean slowdown of its odd multiples, from the seconds of widths between two full blocks."""
    low, high = min(times), max(times)
    found: dict[int, list[float]] = {step: [] for step in STEPS[:-1]}
    for width, taken in times.items():
        share = (width**2 - low**2) / (high**2 - low**2)
        expected = times[low] + share * (times[high] - times[low])
        for step in STEPS[:-1]:
            if width % (2 * step) == step:
                found[step].append(taken / expected)
    return {step: mean(values) for step, values in found.items()}


def heaviest(model: nn.Module, example: Call) -> list[Shape]:
    """The `LAYERS` layers of `model` with most multiply-adds, no two alike but for their width."""
    seen: dict[Shape, float] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        weight, places = module.weight, output.numel() / max(1, output.shape[0])
        assert isinstance(weight, Tensor)
        seen.setdefault(_shape(module, args[0]), places * weight[0].numel())

    kinds = tuple(kind for kind in (*CONVOLUTIONS, nn.Linear) if kind not in TRANSPOSED)
    chosen = [m for m in model.modules() if isinstance(m, kinds) and getattr(m, "groups", 1) == 1]
    handles = [module.register_forward_hook(note) for module in chosen]
    try:
        with torch.inference_mode(), evaluating(model):
            example.on(model)
    finally:
        for handle in handles:
            handle.remove()
    unlike: dict[tuple[object, ...], Shape] = {}
    for shape in sorted(seen, key=lambda shape: -seen[shape]):
        if shape.channels >= STEPS[-1]:
            unlike.setdefault((shape.kind, shape.size, shape.settings), shape)
    return list(unlike.values())[:LAYERS]


def _shape(module: nn.Module, inputs: Tensor) -> Shape:
    if isinstance(module, nn.Linear):
        return Shape(nn.Linear, tuple(inputs.shape[1:-1]), (), min(module.in_features, module.out_features))
    assert isinstance(module, CONVOLUTIONS)
    names = ("kernel_size", "stride", "padding", "dilation")
    settings = tuple((name, getattr(module, name)) for name in names)
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    return Shape(kind, tuple(inputs.shape[2:]), settings, min(module.in_channels, module.out_channels))


@torch.inference_mode()
def layer_times(shape: Shape, widths: Sequence[int], compute: Compute, seconds: float) -> dict[int, float]:
    """Width -> the least seconds of a run, over rounds that take all widths in turn."""
    layers = {width: compute.place(shape.layer(width)).eval() for width in widths}
    inputs = {width: _placed(shape.inputs(width), compute) for width in widths}
    least = dict.fromkeys(widths, float("inf"))
    with compute.autocast():
        for width in widths:  # the first run chooses kernels
            layers[width](inputs[width])
        started, rounds = perf_counter(), 0
        while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and perf_counter() - started < seconds):
            for width in widths:
                start = perf_counter()
                layers[width](inputs[width])
                if compute.device.type == "cuda":
                    torch.cuda.synchronize()
                least[width] = min(least[width], perf_counter() - start)
            rounds += 1
    return least


def _placed(inputs: Tensor, compute: Compute) -> Tensor:
    inputs = inputs.to(compute.device)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs

"""Running every stage on every example of a split, once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amc.cascade.stages.records import Records
from amc.cascade.stages.stage import Stage, State
from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.zoo.data.splits import Split, groups_of


@torch.inference_mode()
def record(stages: Sequence[Stage], split: Split, compute: Compute, batch_size: int = 250) -> Records:
    """What every stage says of every example of `split`, in the split's own order; no example leaves early.

    The stages' modules must be in `eval` mode, on `compute.device`.

    Raises:
        ModelError: an output is no logits of finite numbers, or stages differ in their number of classes.
    """
    logits: list[list[Tensor]] = [[] for _ in stages]
    labels = []
    with compute.autocast():
        for inputs, answers in split.batches(batch_size):
            state: State = {}
            for stage, seen in zip(stages, logits, strict=True):
                outputs, state = stage.run(inputs.to(compute.device), state)
                seen.append(_checked(stage.name, outputs, len(answers)))
            labels.append(answers.cpu())
    widths = {stage.name: seen[0].shape[1] for stage, seen in zip(stages, logits, strict=True)}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise ModelError(f"stages of a cascade must have the same classes, but {listed}; leave one out")
    stacked = torch.stack([torch.cat(seen) for seen in logits])
    return Records(tuple(widths), stacked, torch.cat(labels), groups_of(split))


def _checked(name: str, outputs: Tensor, count: int) -> Tensor:
    """Logits on the CPU as float32."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != count:
        found = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(f"a stage must answer with logits (n, classes), but {name} gave {found}; cascades classify")
    outputs = outputs.float().cpu()
    if not bool(outputs.isfinite().all()):
        raise ModelError(f"a stage's outputs must be finite, but {name} gave NaN or infinity; check its weights")
    return outputs

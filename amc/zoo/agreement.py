"""How near a network's outputs are to the dense network's: what is judged and trained by where there are no labels.

Outputs are logits where they are one tensor (n, classes) of at least two classes, or (n, classes, ...) beside labels
(n, ...); anything else (a regression, a dict of maps) is compared as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.zoo.call import Call, float_tensors, on_cpu
from amc.zoo.teacher import RememberingTeacher

AGREEMENT = "agreement"
LEAST_VARIANCE = 1e-12  # of outputs that are all alike


@dataclass(frozen=True, eq=False)
class Agreement:
    """The metric `agreement` (see `amc.zoo.task`): it asks the dense network about every batch.

    - Logits: an example scores 1 where the largest logit is that of the dense network's largest, else 0; its loss is
      the divergence KL(dense || ours), nats, smallest over `sharpness` (inverse temperatures of ours).
    - Other outputs: an example scores 1 less its squared error over the variance of the dense network's outputs in the
      batch, averaged over the outputs and cut off at 0; its loss is that error.

    Attributes:
        dense: the dense network, in `eval` mode; None until `Task.bound` names it.
        compute: where it runs.
        call: what the networks are called with for a batch.
        sharpness: see above.
    """

    dense: nn.Module | None = None
    compute: Compute | None = None
    call: Callable[[Any], Call] | None = None
    sharpness: tuple[float, ...] = (1.0,)

    def __call__(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """Scores (n,) and losses (n, sharpness) or (n, 1) of outputs and batch, both on the CPU.

        Raises:
            ModelError: no dense network is bound, or its outputs have other shapes.
        """
        wanted = on_cpu(self._dense_outputs(batch))
        self._check_alike(outputs, wanted)
        if are_classes(outputs):
            target = log_softmax(wanted, 1)
            losses = [
                kl_div(log_softmax(outputs * factor, 1), target, reduction="none", log_target=True).sum(1)
                for factor in self.sharpness
            ]
            return {"scores": outputs.argmax(1) == wanted.argmax(1), "losses": torch.stack(losses, 1).double()}
        errors = [
            (mine.double() - theirs.double()).square().flatten(1).mean(1) / _variance(theirs.double())
            for mine, theirs in zip(float_tensors(outputs), float_tensors(wanted), strict=True)
        ]
        error = torch.stack(errors).mean(0)
        return {"scores": (1 - error).clamp(min=0), "losses": error[:, None]}

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """The scalar to be made small: KL(dense || ours) of logits, else the relative squared error; differentiable."""
        with torch.no_grad():
            wanted = self._dense_outputs(batch)
        self._check_alike(outputs, wanted)
        return divergence(outputs, wanted, 1.0) if are_classes(outputs) else relative_error(outputs, wanted)

    @cached_property
    def _teacher(self) -> RememberingTeacher | None:
        return None if self.dense is None else RememberingTeacher(self.dense)

    def _dense_outputs(self, batch: Any) -> Any:
        if self._teacher is None or self.compute is None or self.call is None:
            raise ModelError(
                "agreement compares with a trained dense network, but there is none here; take data with labels, or "
                "give --metric and --loss"
            )
        with self.compute.autocast():
            return self._teacher.outputs(self.call(batch).to("cpu"), self.compute.device)

    def _check_alike(self, outputs: Any, wanted: Any) -> None:
        ours, theirs = ([tuple(tensor.shape) for tensor in float_tensors(tree)] for tree in (outputs, wanted))
        if not ours or ours != theirs:
            raise ModelError(
                f"agreement needs outputs of the dense network's shapes {theirs[:3]}, but they are {ours[:3]}; give "
                "--metric package.module:function"
            )


def are_classes(outputs: Any) -> bool:
    """Whether outputs are logits as far as they themselves tell: one tensor (n, classes), at least two classes."""
    return isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1


def divergence(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL(wanted || outputs) of logits (n, classes, ...) at a temperature, times its square: the mean over all places.

    Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    ours, theirs = (_by_place(logits).float() / temperature for logits in (outputs, wanted))
    soft = kl_div(log_softmax(ours, 1), log_softmax(theirs, 1), reduction="batchmean", log_target=True)
    return temperature**2 * soft


def relative_error(outputs: Any, wanted: Any) -> Tensor:
    """Mean squared error of each tensor of the outputs over its variance in `wanted`, averaged over the tensors."""
    errors = [
        (a.float() - b.float()).square().mean() / _variance(b.float())
        for a, b in zip(float_tensors(outputs), float_tensors(wanted), strict=True)
    ]
    return torch.stack(errors).mean()


def _variance(tensor: Tensor) -> Tensor:
    return tensor.var(unbiased=False).clamp(min=LEAST_VARIANCE)


def _by_place(logits: Tensor) -> Tensor:
    """Logits (n, classes, ...) as (n ..., classes): one row for each place."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).flatten(0, -2)

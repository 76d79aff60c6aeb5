"""Kinds of labels: what is done to a cut network before it is looked at, and what is seen then.

A kind is written `none`, `batchnorm` or `fold` (folding and BatchNorm), with `+STEPS` of distillation behind it, and
behind these `xPICTURES` in a step and `@RATE` of learning where they are not the recipe's: `fold+20`, `fold+50x64@0.1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from amc.job.dense import Dense
from amc.study.trial import ORDER, Measure
from amc.system.errors import UsageError
from amc.train.settings import RecoverySettings
from amc.zoo.call import on_cpu
from amc.zoo.task import SHARPNESS

KIND = re.compile(r"(none|batchnorm|fold)(?:\+([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?(?:@(\d*\.?\d+))?)?")
NONE, FOLD = "none", "fold"


@dataclass(frozen=True)
class Kind:
    """What is done to a cut network before its label is taken."""

    name: str
    base: str
    steps: int = 0
    images: int | None = None
    lr: float | None = None

    def recovery(self, given: RecoverySettings) -> RecoverySettings:
        """The recipe's recovery, changed to this kind's."""
        changed: dict[str, Any] = {"fold": self.base == FOLD, "steps": self.steps, "lr": self.lr or given.lr}
        changed["step_images"] = self.images or given.step_images
        images = given.batchnorm_images or RecoverySettings().batchnorm_images
        return given.model_copy(update={**changed, "batchnorm_images": 0 if self.base == NONE else images})


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """Kinds from a comma-separated list.

    Raises:
        UsageError: one is not of the form asked for, or stands there twice.
    """
    names = [name.strip() for name in text.split(",")]
    kinds = []
    for name in names:
        found = KIND.fullmatch(name)
        if found is None:
            raise UsageError(
                f"a kind of label must be none, batchnorm or fold, or these and +STEPS, +20x64@0.1, but is {name!r}"
            )
        base, steps, images, rate = found.groups()
        kinds.append(Kind(name, base, int(steps or 0), int(images) if images else None, float(rate) if rate else None))
    if len(set(names)) < len(names):
        raise UsageError(f"kinds of labels must differ, but they are {text!r}")
    return tuple(kinds)


JUDGES = parse_kinds("fold,fold+20")  # by which good policies are told for the plan, whatever kinds are compared
JUDGED = " and ".join(kind.name for kind in JUDGES)


class Distance:
    """How far a network's outputs on the validation split are from the dense one's, which are computed once.

    Attributes:
        reference: what was measured of the dense network.
    """

    def __init__(self, dense: Dense) -> None:
        self.dense, self._taught = dense, list[Any]()
        keep = dense.model.register_forward_hook(lambda module, args, outputs: self._taught.append(on_cpu(outputs)))
        try:
            self.reference = dense.measure.evaluate(dense.model)
        finally:
            keep.remove()
        batch = next(iter(dense.measure.pictures.batches(dense.recipe.search.batch_size, seed=ORDER)))
        self._logits = self._are_logits(self._taught[0], batch)

    def _are_logits(self, outputs: Any, batch: Any) -> bool:
        """(n, classes), or (n, classes, ...) that the usual loss takes beside the batch's labels."""
        task = self.dense.task
        if task.objective is not None or not isinstance(outputs, Tensor):
            return False
        return outputs.ndim == 2 or task.loss(outputs, on_cpu(batch)) is not None

    @contextmanager
    def seen_by(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Adds to the list, for every batch that `model` is evaluated on inside, the mean over its examples."""
        sums: list[Tensor] = []

        def hook(module: nn.Module, args: Any, outputs: Any) -> None:
            with self.dense.compute.exact():
                found = self._of(on_cpu(outputs), self._taught[turn[0]])
            turn[0] += 1
            if found is not None:
                sums.append(found)

        turn = [0]
        handle = model.register_forward_hook(hook)
        try:
            yield sums
        finally:
            handle.remove()

    def _of(self, outputs: Any, taught: Any) -> Tensor | None:
        """Divergences (t,) from the teacher's logits, nats, one for each of `SHARPNESS`; else (1,), the task's own."""
        if self._logits:
            ours, theirs = (logits.movedim(1, -1).flatten(0, -2) for logits in (outputs, taught))
            target = log_softmax(theirs, 1)
            each = [kl_div(log_softmax(ours * s, 1), target, reduction="batchmean", log_target=True) for s in SHARPNESS]
            return torch.stack(each).double()
        found = self.dense.task.distil(outputs, taught, 1.0)
        return None if found is None else found.double().reshape(1)


class Labeller:
    """Takes labels after one kind of recovery."""

    def __init__(self, dense: Dense, recovery: RecoverySettings, distance: Distance) -> None:
        self.distance = distance
        self.measure = Measure(
            dense.model, dense.table, dense.place, dense.moments if recovery.fold else None, dense.splits,
            dense.compute, recovery, dense.recipe.search, dense.costs, dense.task, dense.recipe.finetune,
        )  # fmt: skip
        self.measure.train, self.measure.pictures = dense.measure.train, dense.measure.pictures  # kept once for all

    def __call__(self, policy: NDArray[np.int64]) -> dict[str, Any]:
        """Accuracy, calibrated loss, distance and seconds of one (d,) policy."""
        parts: dict[str, float] = {}
        small = self.measure.realise(policy, parts)
        start = perf_counter()
        found = looked_at(small, self.measure, self.distance)
        parts["evaluate"] = perf_counter() - start
        return {**found, "seconds": sum(parts.values()), "parts": parts}


def looked_at(model: nn.Module, measure: Measure, distance: Distance) -> dict[str, Any]:
    """What the validation split tells of a network: accuracy, loss and distance (None where there is none)."""
    with distance.seen_by(model) as sums:
        result = measure.evaluate(model)
    far = float(torch.stack(sums).mean(0).min()) if sums else None  # all batches but the last are of one size
    return {"accuracy": result.accuracy, "loss": result.loss, "distance": far}

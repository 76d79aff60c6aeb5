"""How a batch is given to the network and how its outputs are judged: classification, or what the user's functions say.

The user's functions, each named `package.module:function`:

- `batch(batch)` -> what the network is called with: a tensor, a dict (keyword arguments), a tuple or list of arguments.
  Left out: the first element of the batch.
- `metric(outputs, batch)` -> a score in [0, 1] for each example, larger is better: a tensor or sequence (n,); or a dict
  with `scores` and, where there is one that is comparable between networks, `losses` (n,), in nats; or (n, t), of which
  the column with the smallest mean counts (`calibrated_losses`). Left out: right or wrong, from logits (n, classes) and
  the labels that are the second element of the batch.
- `loss(outputs, batch)` -> the scalar that fine-tuning makes small, from outputs in training mode. Left out: the
  cross-entropy of logits (n, classes, ...) and labels (n, ...).

Metrics get outputs and batch on the CPU, losses on the network's own device.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from amc.system.errors import AmcError, ModelError, UsageError
from amc.system.factory import FACTORY, import_factory, one_line
from amc.zoo.call import Call, as_call, float_tensors, moved, on_cpu

SHARPNESS = torch.logspace(-math.log10(3), math.log10(3), 21).tolist()  # inverse temperatures tried, 1 among them
ACCURACY = "accuracy"

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is said of one batch.

    Attributes:
        scores: (n,) bool (right or wrong) or float64 in [0, 1].
        losses: (t,) float64 sums over the batch, nats, of which the smallest counts in the end: one for each of
            `SHARPNESS` where outputs are logits; (1,) zero where the metric gives none.
    """

    scores: Tensor
    losses: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """The user's functions by what they are for; None stands for classification of one input."""

    batch: Function | None = None
    metric: Function | None = None
    objective: Function | None = None
    metric_name: str = ACCURACY
    names: tuple[str, str, str] = ("", "", "")

    @property
    def fingerprint(self) -> str:
        """A text that changes when the functions' names or the source of their modules do; the loss plays no part."""
        return _fingerprint(self.names, (self.batch, self.metric)) or ACCURACY

    @property
    def loss_fingerprint(self) -> str:
        """Likewise of the loss; empty where it is the usual one."""
        return _fingerprint(self.names[2:], (self.objective,))

    def call(self, batch: Any) -> Call:
        """What the network is called with for `batch`.

        Raises:
            UsageError: the batch function fails, or gives nothing that a network could be called with.
        """
        if self.batch is None:
            if isinstance(batch, (tuple, list)) and batch:
                return Call((batch[0],))
            raise UsageError(
                "a batch must be a tuple whose first element is the network's input, but is a "
                f"{type(batch).__name__}; give --batch package.module:function"
            )
        given = _asked("--batch", self.names[0], self.batch, batch)
        if isinstance(given, (Call, Tensor)):
            return as_call(given)
        if isinstance(given, Mapping):
            return Call((), dict(given))
        if isinstance(given, (tuple, list)):
            return Call(tuple(given))
        raise UsageError(
            f"--batch {self.names[0]} must return a tensor, a tuple of arguments or a dict of keyword arguments, but "
            f"returned {type(given).__name__}"
        )

    def judge(self, outputs: Any, batch: Any, count: int) -> Judgement:
        """Score the `count` examples of `batch`.

        Raises:
            ModelError: classification, but the outputs are no logits.
            UsageError: the metric fails, or gives scores that are none.
        """
        outputs, batch = on_cpu(outputs), on_cpu(batch)
        if self.metric is None:
            return _classified(outputs, batch)
        given = _asked("--metric", self.names[1], self.metric, outputs, batch)
        return _read_scores(given, count, f"--metric {self.names[1]}")

    def loss(self, outputs: Any, batch: Any, label_smoothing: float = 0.0) -> Tensor | None:
        """The scalar to be made small; None where there is no loss of the user's and none can be told from the outputs.

        Raises:
            UsageError: the loss function fails or returns no scalar.
        """
        device = next((tensor.device for tensor in float_tensors(outputs)), torch.device("cpu"))
        if self.objective is not None:
            found = _asked("--loss", self.names[2], self.objective, outputs, moved(batch, device))
            if not isinstance(found, Tensor) or found.numel() != 1:
                shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise UsageError(
                    f"--loss {self.names[2]} must return a scalar tensor, but returned {shape}; take a mean"
                )
            return found.float().reshape(())
        if not _are_logits(outputs, batch):
            return None
        return cross_entropy(outputs.float(), batch[1].to(device), label_smoothing=label_smoothing)

    def distil(self, outputs: Any, taught: Any, temperature: float, batch: Any = None) -> Tensor | None:
        """How far outputs are from the teacher's: a divergence for logits, a relative square error for all else.

        Unless the user gave a loss, one tensor counts as logits if it is (n, classes), or (n, classes, ...) beside
        labels (n, ...) in `batch`: then the divergence is the mean over all places. None where outputs and the
        teacher's do not correspond: a detector gives losses while it trains, and boxes after.
        """
        mine, theirs = float_tensors(outputs), float_tensors(taught)
        if not mine or [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs]:
            return None
        if self.objective is None and _are_classes(outputs, batch):
            ours, wanted = (_by_place(logits) for logits in (outputs, taught))
            soft = kl_div(
                log_softmax(ours.float() / temperature, 1),
                log_softmax(wanted.float() / temperature, 1),
                reduction="batchmean",
                log_target=True,
            )
            return temperature**2 * soft
        errors = [
            (a.float() - b.float()).square().mean() / b.float().var(unbiased=False).clamp(min=1e-12)
            for a, b in zip(mine, theirs, strict=True)
        ]
        return torch.stack(errors).mean()


CLASSIFICATION = Task()


def calibrated_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies (n, t), nats, of logits (n, classes) and labels (n,), at each of `SHARPNESS`."""
    return torch.stack([cross_entropy(logits * factor, labels, reduction="none") for factor in SHARPNESS], 1)


def load_task(batch: str | None = None, metric: str | None = None, loss: str | None = None) -> Task:
    """The task of a recipe's functions, each by its name or None.

    Raises:
        UsageError: a module cannot be imported, or holds no such function.
    """
    names = batch or "", metric or "", loss or ""
    feed, score, objective = (
        _function(flag, name) if name else None
        for flag, name in zip(("--batch", "--metric", "--loss"), names, strict=True)
    )
    called = metric.rpartition(":")[2].rpartition(".")[2].replace("_", " ") if metric else ACCURACY
    return Task(feed, score, objective, called, names)


def _function(flag: str, name: str) -> Function:
    if not FACTORY.fullmatch(name):
        raise UsageError(f"{flag} must be package.module:function, but is {name!r}")
    try:
        return import_factory(name, UsageError)
    except UsageError as error:
        raise UsageError(f"{flag} {error}") from None


def _asked(flag: str, name: str, function: Function, *arguments: Any) -> Any:
    """Call a function of the user's; whatever it raises becomes one line."""
    try:
        return function(*arguments)
    except AmcError:
        raise
    except Exception as cause:  # the user's function may fail in any way
        raise UsageError(f"{flag} {name} must take what it is given, but failed: {one_line(cause)}") from None


def _classified(logits: Any, batch: Any) -> Judgement:
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and _are_logits(logits, batch)):
        raise ModelError(
            f"accuracy needs logits (n, classes) and a batch of (inputs, labels), but the network gave {_kind(logits)}"
            "; give --metric package.module:function"
        )
    labels = batch[1]
    losses = [cross_entropy(logits * factor, labels, reduction="sum").double() for factor in SHARPNESS]
    return Judgement(logits.argmax(1) == labels, torch.stack(losses))


def _are_classes(outputs: Any, batch: Any) -> bool:
    """Whether outputs are logits, as far as can be told: (n, classes) always are."""
    return (isinstance(outputs, Tensor) and outputs.ndim == 2) or _are_logits(outputs, batch)


def _by_place(logits: Tensor) -> Tensor:
    """Logits (n, classes, ...) as (n ..., classes): one row for each place."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).flatten(0, -2)


def _are_logits(outputs: Any, batch: Any) -> bool:
    """Whether outputs (n, classes, ...) and the second element of the batch, (n, ...), are logits and labels."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return False
    labels = batch[1]
    return (
        isinstance(labels, Tensor)
        and not labels.is_floating_point()
        and labels.shape == outputs.shape[:1] + outputs.shape[2:]
    )


def _read_scores(given: Any, count: int, who: str) -> Judgement:
    table = given if isinstance(given, Mapping) else {"scores": given}
    if "scores" not in table or not set(table) <= {"scores", "losses"}:
        raise UsageError(f"{who} must return scores, or a dict of scores and losses, but its keys are {sorted(table)}")
    scores = _numbers(table["scores"], "scores", count, who)
    losses = _numbers(table["losses"], "losses", count, who) if "losses" in table else torch.zeros_like(scores)
    low, high = float(scores.min()), float(scores.max())
    if low < 0 or high > 1:
        raise UsageError(
            f"{who} must return scores from 0 to 1, but one is {low if low < 0 else high:.6g}; rescale them"
        )
    return Judgement(scores, losses.sum(0).reshape(-1))


def _numbers(value: Any, key: str, count: int, who: str) -> Tensor:
    """Finite float64, (n,); losses may be (n, t)."""
    try:
        numbers = torch.as_tensor(value).detach().double()
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"{who} must return {key} as one number an example, but gave a {type(value).__name__}"
        ) from None
    if numbers.shape[:1] != (count,) or numbers.ndim > (2 if key == "losses" else 1):
        raise UsageError(
            f"{who} must return {key} of shape ({count},), one for each example of the batch, but they have shape "
            f"{tuple(numbers.shape)}"
        )
    if not bool(numbers.isfinite().all()):
        raise UsageError(f"{who} must return finite {key}, but {int((~numbers.isfinite()).sum())} of {count} are not")
    return numbers


def _kind(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _fingerprint(names: Sequence[str], functions: Sequence[Function | None]) -> str:
    used = [(name, _source(f)) for name, f in zip(names, functions, strict=False) if f]
    if not used:
        return ""
    digest = hashlib.sha256(json.dumps([source for _, source in used]).encode()).hexdigest()[:12]
    return " ".join([*(name for name, _ in used), digest])


def _source(function: Function) -> str:
    """The text of the module a function stands in, as far as it can be had."""
    try:
        return inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        return ""

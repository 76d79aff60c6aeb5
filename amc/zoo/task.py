"""How a batch is given to the network and how its outputs are judged: classification, or what the user's functions say.

The user's functions, each a callable or its name `package.module:function`:

- `batch(batch)` -> what the network is called with: a tensor, a dict (keyword arguments), a tuple or list of arguments.
  By default: the first element of a tuple or list; a lone tensor, or a dict as keyword arguments.
- `metric(outputs, batch)` -> a score in [0, 1] for each example, larger is better: a tensor or sequence (n,), of bools
  too; or a dict with `scores` and, where there is one that is comparable between networks, `losses` (n,), in nats; or
  (n, t), of which the column with the smallest mean counts (`calibrated_losses`). By default: right or wrong, from
  logits (n, classes) and the labels that are the second element of the batch; where batches carry no labels, or by the
  name `agreement`, how far the outputs agree with the dense network's (`amc.zoo.agreement`).
- `loss(outputs, batch)` -> the scalar that fine-tuning makes small, from outputs in training mode. By default: the
  cross-entropy of logits (n, classes, ...) and labels (n, ...); without labels the divergence from the dense network.

Metrics get outputs and batch on the CPU, losses on the network's own device.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amc.system.device import Compute
from amc.system.errors import AmcError, DataError, ModelError, UsageError
from amc.system.factory import FACTORY, import_factory, one_line
from amc.zoo.agreement import AGREEMENT, Agreement, are_classes, divergence, relative_error
from amc.zoo.call import Call, as_call, float_tensors, moved, on_cpu

# Inverse temperatures tried, 1 among them.
SHARPNESS: tuple[float, ...] = tuple(torch.logspace(-math.log10(3), math.log10(3), 21).tolist())
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

    def bound(self, dense: nn.Module, compute: Compute, batch: Any = None) -> Task:
        """The task for networks made from `dense`, which `agreement` compares with; other metrics do without.

        Args:
            dense: on `compute.device`; it is put in `eval` mode.
            compute: where, and in which number format, it runs.
            batch: any batch of the data: where it carries no labels and the user gave no metric, that is `agreement`.
        """
        lacks = self.metric is None and batch is not None and not _has_labels(batch)
        if not lacks and not isinstance(self.metric, Agreement):
            return self
        names = (self.names[0], AGREEMENT, self.names[2])
        metric = Agreement(dense.eval(), compute, self.call, SHARPNESS)
        return replace(self, metric=metric, metric_name=AGREEMENT, names=names)

    def call(self, batch: Any) -> Call:
        """What the network is called with for `batch`.

        Raises:
            UsageError: the batch function fails, or gives nothing that a network could be called with.
        """
        if self.batch is None:
            return _plain_call(batch)
        given = _asked("--batch", self.names[0], self.batch, batch)
        try:
            return as_call(given)
        except UsageError:
            raise UsageError(
                f"--batch {self.names[0]} must return a tensor, a tuple of arguments or a dict of keyword arguments, "
                f"but returned {type(given).__name__}"
            ) from None

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

    def agreement_loss(self, outputs: Any, batch: Any) -> Tensor | None:
        """The distance from the dense network's outputs, where the metric is `agreement`: for want of any other loss.

        Raises:
            ModelError: the task is not bound to a dense network, or its outputs have other shapes.
        """
        return self.metric.loss(outputs, batch) if isinstance(self.metric, Agreement) else None

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
            return divergence(outputs, taught, temperature)
        return relative_error(outputs, taught)


CLASSIFICATION = Task()


def calibrated_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies (n, t), nats, of logits (n, classes) and labels (n,), at each of `SHARPNESS`."""
    return torch.stack([cross_entropy(logits * factor, labels, reduction="none") for factor in SHARPNESS], 1)


def load_task(
    batch: str | Function | None = None, metric: str | Function | None = None, loss: str | Function | None = None
) -> Task:
    """The task of the user's functions, each a callable, its name, or None; the metric may be `agreement`.

    Raises:
        UsageError: a module cannot be imported, or holds no such function.
    """
    found: list[tuple[Function | None, str]] = []
    for flag, given in zip(("--batch", "--metric", "--loss"), (batch, metric, loss), strict=True):
        if flag == "--metric" and given == AGREEMENT:
            found.append((Agreement(), AGREEMENT))
        elif isinstance(given, str) and given:
            found.append((_function(flag, given), given))
        else:
            found.append((given or None, _name(given) if given else ""))
    (feed, feed_name), (score, score_name), (objective, objective_name) = found
    called = score_name.rpartition(":")[2].rpartition(".")[2].replace("_", " ").replace("<lambda>", "score") or ACCURACY
    return Task(feed, score, objective, called, (feed_name, score_name, objective_name))


def _name(function: Function) -> str:
    """`package.module:function` of a callable; of an object with a call method, that of its class."""
    named = _named(function)
    return f"{named.__module__}:{named.__qualname__}"


def _named(function: Function) -> Any:
    """The function or class that a callable goes by, without wrappers and partials."""
    plain = inspect.unwrap(function)
    while isinstance(plain, functools.partial):
        plain = plain.func
    return plain if hasattr(plain, "__qualname__") else type(plain)


def _function(flag: str, name: str) -> Function:
    if not FACTORY.fullmatch(name):
        more = " or agreement" if flag == "--metric" else ""
        raise UsageError(f"{flag} must be package.module:function{more}, but is {name!r}")
    try:
        return import_factory(name, UsageError)
    except UsageError as error:
        raise UsageError(f"{flag} {error}") from None


def _plain_call(batch: Any) -> Call:
    """What the network is called with where no function of the user's says."""
    if isinstance(batch, Tensor):
        return Call((batch,))
    if isinstance(batch, Mapping) and batch:
        return Call((), dict(batch))
    if isinstance(batch, (tuple, list)) and batch:
        return Call((batch[0],))
    raise UsageError(
        f"a batch must be a tensor, a tuple whose first element is the network's input, or a dict of its keyword "
        f"arguments, but is a {type(batch).__name__}; give --batch package.module:function"
    )


def _has_labels(batch: Any) -> bool:
    """Whether a batch can carry labels where classification looks for them: as the second element."""
    return isinstance(batch, (tuple, list)) and len(batch) > 1


def _asked(flag: str, name: str, function: Function, *arguments: Any) -> Any:
    """Call a function of the user's; whatever it raises becomes one line."""
    try:
        return function(*arguments)
    except AmcError:
        raise
    except Exception as cause:  # the user's function may fail in any way
        raise UsageError(f"{flag} {name} must take what it is given, but failed: {one_line(cause)}") from None


def _classified(logits: Any, batch: Any) -> Judgement:
    _check_labels(logits, batch)
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and _are_logits(logits, batch)):
        raise ModelError(
            f"accuracy needs logits (n, classes) and a batch of (inputs, labels), but the network gave {_kind(logits)}"
            "; give --metric package.module:function, or --metric agreement"
        )
    labels = batch[1]
    losses = [cross_entropy(logits * factor, labels, reduction="sum").double() for factor in SHARPNESS]
    return Judgement(logits.argmax(1) == labels, torch.stack(losses))


def _check_labels(logits: Any, batch: Any) -> None:
    """Raises `DataError` for labels that are no whole numbers, or that the network has no class for."""
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and isinstance(batch, (tuple, list)) and len(batch) > 1):
        return
    labels = batch[1]
    if not (isinstance(labels, Tensor) and labels.shape == logits.shape[:1] and len(labels)):
        return
    if labels.is_floating_point():
        raise DataError(f"labels must be whole numbers, but are {labels.dtype}; give labels.long(), or a metric")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"labels must be 0 to {logits.shape[1] - 1}, as the network has {logits.shape[1]} classes, but reach from "
            f"{low} to {high}; check the labels, or the network's number of classes"
        )


def _are_classes(outputs: Any, batch: Any) -> bool:
    """Whether outputs are logits, as far as can be told: (n, classes) always are."""
    return are_classes(outputs) or _are_logits(outputs, batch)


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
    """What a function does, as far as its text tells: that of its module where a name imports it, else its own.

    The module's text covers the helpers beside it. A script or a notebook (`__main__`) is another text with every
    edit, so there only the function's own text counts. Of a lambda, which may share its line with another, and of what
    has no text, it is the bytecode. Values that a closure or a partial holds play no part.
    """
    if isinstance(function, Agreement):
        return ""
    named = _named(function)
    module, code = inspect.getmodule(named), getattr(named, "__code__", None)
    if code is not None and "<lambda>" in named.__qualname__:
        return _bytecode(code)
    importable = module is not None and module.__name__ != "__main__" and "<locals>" not in named.__qualname__
    try:
        return inspect.getsource(module if module is not None and importable else named)
    except (OSError, TypeError):
        return "" if code is None else _bytecode(code)


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return f"{code.co_code!r} {code.co_names} {constants}"

"""Networks that were not cut from the base: from a zoo, from files, from releases; tried as savers beside its variants.

What is given: a network's name with its default weights (`timm:resnet18.a1_in1k`, `package.module:factory`), a name
with a file of weights (`resnet56@trained.safetensors`), or the folder of a release. Each must read the run's inputs as
they are and answer with its classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.cascade.stages.component import NetworkComponent, macs_of
from amc.release.archive import RECORD, load_network, read_architecture
from amc.system.device import Compute
from amc.system.errors import ModelError
from amc.system.factory import one_line
from amc.zoo.call import Call
from amc.zoo.data.splits import Splits
from amc.zoo.networks.source import ModelSource, build_model, import_timm, model_source

ORIGIN = "external"
EXAMPLES = 250  # on which a network must be better than chance
DEVIATIONS = 3.0  # above chance
SHIFT = 0.02  # of a mean or a deviation, in shares of the range of a image, that is no other normalisation
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def external_model(text: str, splits: Splits, compute: Compute, taken: set[str] | None = None) -> NetworkComponent:
    """One network, in `eval` mode, on `compute.device`.

    Args:
        text: as this module's docstring lists them.
        taken: names that are not free; a number is put behind such a one.

    Raises:
        ModelError: it cannot be built, reads other inputs, has other classes, or is no better than chance.
        RunError: a release's files are damaged.
    """
    source, model, normalisation = _load(text, splits)
    model = compute.place(model.eval()).requires_grad_(False)
    _check_normalisation(text, normalisation, splits)
    _check_answers(text, model, splits, compute)
    example = torch.zeros(1, *splits.input_shape, device=compute.device)
    name = _free_name(text, taken or set())
    ours = _normalisation_of(splits)
    return NetworkComponent(
        name, model, macs_of(model, Call((example,))), source, tuple(splits.input_shape), ORIGIN, ours
    )


def _load(text: str, splits: Splits) -> tuple[ModelSource, nn.Module, Mapping[str, Sequence[float]] | None]:
    """Source, network, and what it was trained to see, where that is known."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / RECORD).is_file():
            raise ModelError(f"a folder given as a network must be a release, but {text} has no {RECORD}; name another")
        architecture = read_architecture(folder)
        if architecture.input_shape != tuple(splits.input_shape):
            raise ModelError(
                f"a network must read inputs of {tuple(splits.input_shape)}, but {text} reads "
                f"{architecture.input_shape}; take a release for these data"
            )
        return architecture.source, load_network(folder), architecture.normalisation
    name, at, file = text.partition("@")
    if not name or (at and not file):
        raise ModelError(f"a network with weights must be written NAME@FILE, but is {text!r}; write both parts")
    shape = splits.input_shape
    given = {
        "num_classes": splits.num_classes,
        "in_channels": shape[0] if len(shape) > 1 else None,
        "size": shape[-1] if shape else None,
        "weights": file or "default",
    }
    source = model_source(name, **given)  # type: ignore[arg-type]
    model = build_model(name, **given)  # type: ignore[arg-type]
    return source, model, None if file else _pretrained_normalisation(name)


def _pretrained_normalisation(name: str) -> Mapping[str, Sequence[float]] | None:
    """What a library's default weights were trained to see."""
    if name.startswith("timm:"):
        config = import_timm().models.get_pretrained_cfg(name.removeprefix("timm:"))
        return None if config is None else {"mean": list(config.mean), "std": list(config.std)}
    return IMAGENET if name.startswith("torchvision:") else None


def _normalisation_of(splits: Splits) -> dict[str, list[float]] | None:
    mean, std = (getattr(splits.validation, key, None) for key in ("mean", "std"))
    return {"mean": list(mean), "std": list(std)} if mean and std else None


def _check_normalisation(text: str, theirs: Mapping[str, Sequence[float]] | None, splits: Splits) -> None:
    ours = _normalisation_of(splits)
    if ours is None or theirs is None:
        return
    for key, wanted in ours.items():
        found = list(theirs.get(key, wanted))
        if len(found) != len(wanted) or any(abs(a - b) > SHIFT for a, b in zip(found, wanted, strict=True)):
            raise ModelError(
                f"a network must be trained on inputs normalised as these data are, with {key} {_numbers(wanted)}, but "
                f"{text} was with {_numbers(found)}; give a factory of yours that normalises anew"
            )


@torch.no_grad()
def _check_answers(text: str, model: nn.Module, splits: Splits, compute: Compute) -> None:
    """It must run, have the data's classes, and know something: classes in another order know nothing."""
    inputs, labels = next(iter(splits.train.batches(EXAMPLES, limit=EXAMPLES)))
    try:
        with compute.autocast():
            outputs = model(inputs.to(compute.device))
    except Exception as cause:  # anyone's network, on inputs it may not be made for
        raise ModelError(
            f"a network must read inputs of {tuple(inputs.shape[1:])}, but {text} failed: {one_line(cause)}; take "
            "another"
        ) from None
    classes = splits.num_classes
    wanted = (len(labels), classes if classes is not None else "classes")
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or classes not in (None, outputs.shape[1]):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(f"a network must answer with logits {wanted}, but {text} gave {got}; take another")
    if not bool(outputs.isfinite().all()):
        raise ModelError(f"a network's outputs must be finite, but {text} gave NaN or infinity; check its weights")
    right, probability = int((outputs.argmax(1).cpu() == labels).sum()), 1 / outputs.shape[1]
    least = len(labels) * probability + DEVIATIONS * (len(labels) * probability * (1 - probability)) ** 0.5
    if right < least:
        raise ModelError(
            f"a network must know the data's classes, in their order, but {text} is right on {right} of {len(labels)} "
            "training examples, no better than chance; train it on these data"
        )


def _free_name(text: str, taken: set[str]) -> str:
    """Short and fit for a file's name."""
    head, _, file = text.partition("@")
    path = Path(text).expanduser()
    plain = path.resolve().name if path.is_dir() else f"{head.rpartition(':')[2]}-{Path(file).stem}" if file else head
    base = re.sub(r"[^\w.%+-]+", "-", plain).strip("-")
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"

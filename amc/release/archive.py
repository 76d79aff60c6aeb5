"""A release on disk: `model.safetensors` and `architecture.json`, all that is needed to have the network back.

The record names the dense network's source and the integers of every layer that shrank. Loading builds the dense
skeleton and puts the small tensors in: no pickle, no torch-pruning, no tracing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from amc.surgery.cutting import with_tensors
from amc.surgery.fitting import widths_of
from amc.surgery.replacement_records import MATERIALISED, replacement_record, restore_replacement
from amc.system.errors import ModelError, RunError
from amc.system.files import write_json, write_whole
from amc.zoo.call import Call
from amc.zoo.networks.source import ModelSource, Structure
from amc.zoo.trust import Trust

FORMAT = "amc-architecture/1"
WEIGHTS, RECORD = "model.safetensors", "architecture.json"


@dataclass(frozen=True)
class Architecture:
    """What `architecture.json` holds.

    Attributes:
        source: builds the dense skeleton.
        layers: the integers of each module that differ from the dense network's, by module name.
        replacements: what took the place of a library's module, by module name.
        input_shape: one image's channels, height, width.
        normalisation: mean and std per channel that inputs are normalised with, where they are known.
        weights_sha256: of the weights file.
    """

    source: ModelSource
    layers: dict[str, dict[str, Any]]
    replacements: dict[str, dict[str, dict[str, Any]]]
    input_shape: tuple[int, ...]
    normalisation: dict[str, list[float]] | None
    channels_last: bool
    weights_sha256: str


def save_network(
    folder: Path,
    model: nn.Module,
    source: ModelSource,
    input_shape: tuple[int, ...],
    normalisation: dict[str, list[float]] | None = None,
    example: Call | None = None,
) -> None:
    """Write `model` to `folder`; each file is whole or absent.

    Where `source` cannot be built by name, a `torch.export` program for inputs like `example` is written beside it.

    Raises:
        StorageError: the folder cannot be written.
    """
    dense = source.skeleton()
    names = _saved_names(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    whole = dict(dense.named_buffers())
    for name, buffer in model.named_buffers():  # what a factory makes again, but of the dense size
        if name not in state and name in whole and whole[name].shape != buffer.shape:
            state[name] = buffer
    channels_last = any(
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        for tensor in state.values()
    )
    payload = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    replacements = {name: found for name, module in model.named_modules() if (found := replacement_record(module))}
    record = {
        "format": FORMAT,
        "source": source.to_json(),
        "layers": _changed_integers(dense, model),
        "standins": replacements,
        "input_shape": list(input_shape),
        "normalisation": normalisation,
        "channels_last": channels_last,
        "weights_sha256": hashlib.sha256(payload).hexdigest(),
    }
    if source.is_object and example is not None:
        from amc.release.exported_program import save_program  # torch.export takes a second to import

        record["program"] = save_program(folder, model, example)
    write_whole(folder / WEIGHTS, lambda file: file.write(payload))
    write_json(folder / RECORD, record)


def _saved_names(model: nn.Module) -> set[str]:
    """The tensors that a weights file holds: a shared one once, under its first name."""
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return names & set(model.state_dict())


def _changed_integers(dense: nn.Module, small: nn.Module) -> dict[str, dict[str, Any]]:
    """The integers, and tuples and lists of them, that modules of the small network hold and the dense ones do not."""
    modules = dict(dense.named_modules())
    changed: dict[str, dict[str, Any]] = {}
    for name, module in small.named_modules():
        for attribute, value in vars(module).items():
            if _is_integral(value) and vars(modules[name]).get(attribute) != value:
                changed.setdefault(name, {})[attribute] = value
    return changed


def _is_integral(value: Any) -> bool:
    return type(value) is int or (type(value) in (tuple, list) and all(type(item) is int for item in value))


def read_architecture(folder: Path, trust: Trust = (), model: Structure | None = None) -> Architecture:
    """Read and check `architecture.json`; `trust` and `model` as `load_network` takes them.

    Raises:
        RunError: there is no release in `folder`, or its record is of another format.
        ModelError: the record names code that is not trusted.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"a release must hold {RECORD} and {WEIGHTS}, but {folder} has no {RECORD}; check the folder")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise RunError(f"{path} must be of format {FORMAT}, but is {record['format']!r}; use the AMC that wrote it")
        return Architecture(
            ModelSource.from_json(record["source"], trust, model),
            record["layers"],
            record.get("standins", {}),
            tuple(record["input_shape"]),
            record["normalisation"],
            record["channels_last"],
            record["weights_sha256"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} must be a whole architecture record, but: {error!r}; restore the release") from None


def load_network(folder: str | Path, model: Structure | None = None, trust: Trust = ()) -> nn.Module:
    """The released network, in `eval` mode, on the CPU; its output is bit for bit that of the network saved.

    Args:
        folder: the release.
        model: a fresh instance of the dense network, or a function that makes one, in place of what the record names;
            needed where the network was handed over as an object. An instance stays as it is.
        trust: `package.module:factory`, or several: code of the caller's own that the record may import. Without it
            only our networks, torchvision's and timm's are built (`amc.zoo.trust`).

    Raises:
        RunError: there is no release in `folder`, or its files do not belong together.
        ModelError: the network's source is missing (a package that is not installed, say) or not trusted.
    """
    folder = Path(folder)
    architecture = read_architecture(folder, trust, model)
    path = folder / WEIGHTS
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise RunError(f"a release must hold {WEIGHTS}, but {path}: {error.strerror}; restore the release") from None
    if hashlib.sha256(payload).hexdigest() != architecture.weights_sha256:
        raise RunError(f"{path} must be the file its record was written for, but the SHA-256 differs; restore it")
    try:
        tensors = load_tensors(payload)
    except SafetensorError as error:
        raise RunError(f"{path} must be a safetensors file, but: {error}; restore the release") from None
    network = _rebuilt(architecture, tensors)
    return network.to(memory_format=torch.channels_last) if architecture.channels_last else network


def _rebuilt(architecture: Architecture, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The dense skeleton with everything put in that the record and the tensors say."""
    name = architecture.source.name
    skeleton = architecture.source.skeleton()
    dense = dict(skeleton.named_modules())
    strange = sorted((set(architecture.layers) | set(architecture.replacements)) - set(dense))
    if strange:
        raise ModelError(f"{name} must have the modules of the release, but has no {strange[0]!r}")
    for path, record in architecture.replacements.items():
        restore_replacement(dense[path], {kind: settings for kind, settings in record.items() if kind == MATERIALISED})
    unknown = sorted(set(tensors) - set(skeleton.state_dict()) - {name for name, _ in skeleton.named_buffers()})
    if unknown:
        raise ModelError(f"{name} must have the tensors of the release, but has no {unknown[0]!r}")
    missing = sorted(_saved_names(skeleton) - set(tensors))
    if missing:
        raise ModelError(f"{name} must have no tensor but the release's, but has {missing[0]!r}")
    model = with_tensors(skeleton, tensors).eval()
    modules = dict(model.named_modules())
    for path, integers in architecture.layers.items():
        for attribute, value in integers.items():
            held = vars(modules[path]).get(attribute)
            if not _is_integral(held) or widths_of(modules[path]).get(attribute, value) != value:
                raise ModelError(f"{path}.{attribute} must be {value} as the release says, but is {held}")
            setattr(modules[path], attribute, tuple(value) if isinstance(held, tuple) else value)
    for path, record in architecture.replacements.items():
        restore_replacement(
            modules[path], {kind: settings for kind, settings in record.items() if kind != MATERIALISED}
        )
    return model

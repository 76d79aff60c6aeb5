"""Weight files: read without trusting them, and checked against the network before anything is changed."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.system.errors import ModelError
from amc.system.factory import one_line

SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_ema", "model_ema")
PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
COUNTER = "num_batches_tracked"  # BatchNorm's step counter, absent from old files and without influence


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights to the CPU; `{"state_dict": ...}` and the like are unwrapped, `module.` is taken off.

    Raises:
        ModelError: the file is missing, of an unknown kind, broken, or holds anything but tensors by name.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is not there"
        raise ModelError(f"--weights must be default, none or a file, but {path} {kind}; check the path")
    if path.suffix not in SAFETENSORS + TORCH:
        raise ModelError(f"a weights file must end in {', '.join(SAFETENSORS + TORCH)}, but is {path.name}")
    found = _read_safetensors(path) if path.suffix in SAFETENSORS else _read_torch(path)
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not found:
        raise ModelError(
            f"{path} must hold tensors by name (a state dict), but holds {type(found).__name__}"
            f"{' without entries' if isinstance(found, Mapping) else ''}; save model.state_dict()"
        )
    odd = [key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if odd:
        raise ModelError(
            f"{path} must hold tensors by name alone, but {odd[0]!r} is {type(found[odd[0]]).__name__} "
            f"({len(odd)} such); save model.state_dict()"
        )
    state = dict(found)
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Put `state` into `model`, whole or not at all.

    Raises:
        ModelError: keys are missing or unknown, shapes differ, or a weight is NaN or infinite; the line names the first
            key and how many there are.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    unknown = [key for key in state if key not in wanted]
    for keys, what in ((missing, "lack"), (unknown, "have the unknown")):
        if keys:
            raise ModelError(
                f"weights must fit the network, but those of {origin} {what} {keys[0]!r} "
                f"({_count(keys)}); check --model and its options"
            )
    shapes = [key for key in state if state[key].shape != wanted[key].shape]
    if shapes:
        key = shapes[0]
        raise ModelError(
            f"weights must fit the network, but {key!r} of {origin} is {tuple(state[key].shape)} where "
            f"the network has {tuple(wanted[key].shape)} ({_count(shapes)}); check --model, its options, "
            "and the data's classes and channels"
        )
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value.to(wanted[key].dtype)).all())]
    if broken:
        raise ModelError(
            f"weights must be finite numbers, but {broken[0]!r} of {origin} holds NaN or infinity "
            f"({_count(broken)}); train or fetch them again"
        )
    model.load_state_dict(dict(state), strict=False)  # strict but for the counters, as checked above


def _count(keys: list[str]) -> str:
    return "1 such key" if len(keys) == 1 else f"{len(keys)} such keys"


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"{path} must be a whole safetensors file, but: {one_line(cause)}; fetch it again") from None


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol it may not know: then it fails below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} must hold tensors alone, which is all that AMC loads from a pickle, but holds other "
            "objects or is broken; save model.state_dict(), best as .safetensors"
        ) from None
    except Exception as cause:  # torch's reader fails in many ways on bytes that it did not write
        raise ModelError(f"{path} must be a whole file of torch.save, but: {one_line(cause)}; fetch it again") from None

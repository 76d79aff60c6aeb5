"""How the zoos' lists were chosen: `python -m amc.bench.coverage.sample torchvision|timm` writes the list anew.

torchvision: all its classifiers. timm: of every module that registers networks, the smallest of each line (the letters
that names begin with), at most `LINES` of them, the smallest first; of a module with one line, its `SMALLEST` smallest.
Networks above `LARGEST` parameters are skipped where their module has smaller ones, timm's `test_` networks always.

Each network is examined on the smallest image of `SIZES` pixels that it can read as it is, or, where it must know the
size, when given by its factory's own argument; else on images of its own size.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from amc import build_model, write_text
from amc.bench.coverage.network_list import networks_file

SIZES = (64, 96, 112, 128, 160, 192, 224, 256)
LINES, SMALLEST, LARGEST = 3, 2, 100e6
SIZE_ARGUMENTS = ("img_size", "image_size", "input_size")


def choose_timm(modules: Sequence[str]) -> list[tuple[str, str]]:
    """(module, name) of the networks chosen by the rule above."""
    import timm

    chosen = []
    for module in modules:
        known = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        sizes = {name: _params(f"timm:{name}") for name in known}
        fitting = [name for name in known if sizes[name] <= LARGEST] or [min(known, key=sizes.__getitem__)]
        fitting.sort(key=lambda name: (sizes[name], name))
        fitting = list({_without_size(name): name for name in reversed(fitting)}.values())[::-1]
        lines: dict[str, str] = {}
        for name in fitting:
            lines.setdefault(_line(name), name)
        picked = list(lines.values())[:LINES] if len(lines) > 1 else fitting[:SMALLEST]
        chosen += [(module, name) for name in picked]
        print(module, picked, file=sys.stderr)
    return chosen


def _without_size(name: str) -> str:
    """A network for larger images is the same network."""
    return re.sub(r"_\d{3}$", "", name)


def _line(name: str) -> str:
    return re.split(r"[\d_]", name.removeprefix("tf_"))[0]


def _params(name: str) -> float:
    """Parameters of a network, built without memory; infinite where it cannot be."""
    try:
        with torch.device("meta"):
            return float(sum(parameter.numel() for parameter in build_model(name).parameters()))
    except Exception:  # a factory that computes with its weights
        return float("inf")


def describe(name: str, own_size: int, size_argument: str | None) -> dict[str, Any]:
    """A network's entry in the list: its name, the size of its images and the arguments of its factory."""
    for size in dict.fromkeys((*[size for size in SIZES if size < own_size], own_size)):
        for options in [{}, {size_argument: size}] if size_argument else [{}]:
            if _reads(name, size, options):
                return {"name": name, "size": size, "options": options}
    raise ValueError(f"{name} reads no image of up to {own_size} pixels")


def _reads(name: str, size: int, options: dict[str, Any]) -> bool:
    """Whether a network runs on images of this size; without memory, if it can be built so."""
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.no_grad():
                model: nn.Module = build_model(name, options=options)
                model.eval()(torch.zeros(1, 3, size, size))
            return True
        except Exception:  # whatever a network raises for an image that it cannot read
            continue
    return False


def _timm_entry(module: str, name: str) -> dict[str, Any]:
    import timm

    config = timm.models.get_pretrained_cfg(name)
    own = config.input_size[-1] if config is not None and config.input_size else 224
    return {"family": module, **describe(f"timm:{name}", own, _timm_size_argument(name))}


def _timm_size_argument(name: str) -> str | None:
    """Factories of timm pass what they do not know on to the class, so the class is asked."""
    import timm

    try:
        with torch.device("meta"):
            taken = inspect.signature(type(timm.create_model(name)).__init__).parameters
    except Exception:
        return "img_size"
    return next((argument for argument in SIZE_ARGUMENTS if argument in taken), None)


def _torchvision_entry(name: str) -> dict[str, Any]:
    from torchvision.models import get_model_builder

    family = get_model_builder(name).__module__.rpartition(".")[2]
    size_argument = {"vision_transformer": "image_size"}.get(family)
    entry = describe(name, 224, size_argument)
    return {"family": family, **entry}


def main(zoo: str) -> None:
    """Write the list of a zoo anew."""
    if zoo == "timm":
        import timm

        entries = [_timm_entry(module, name) for module, name in choose_timm(timm.list_modules())]
    else:
        from torchvision import models

        entries = [_torchvision_entry(name) for name in models.list_models(module=models)]
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    write_text(networks_file(zoo), f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])

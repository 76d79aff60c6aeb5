"""The release as a `torch.export` program, `model.pt2`: it runs without the code of the network's classes.

Read it with `load_program(folder).module()`, or with torch alone: `torch.export.load("model.pt2").module()`. Like any
such file it is to be loaded only from where you trust it.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from amc.system.errors import RunError
from amc.system.factory import one_line
from amc.system.files import write_whole
from amc.zoo.call import Call
from amc.zoo.data.regroup import joined

PROGRAM = "model.pt2"


def save_program(folder: Path, model: nn.Module, example: Call) -> dict[str, Any]:
    """Write `model`, in `eval` mode on the CPU, as a program for inputs like `example`; returns what to record.

    That is `file`, and `batch`, "any" or the one size that it takes; or `missing`, why there is no program, which is
    no error: not every network can be exported. Tensors are float32; the network is left in its mode and place.

    Raises:
        StorageError: the file cannot be written.
    """
    (folder / PROGRAM).unlink(missing_ok=True)  # an older one would be of other weights
    try:
        program, batch = _exported(_compact(model), example.to("cpu"))
    except Exception as cause:  # torch.export fails in many ways
        return {"missing": one_line(cause)}
    write_whole(folder / PROGRAM, lambda file: torch.export.save(program, file))
    return {"file": PROGRAM, "batch": batch}


def load_program(folder: str | Path) -> ExportedProgram:
    """The program in a release's folder. Raises `RunError` where there is none, or it is damaged."""
    path = Path(folder) / PROGRAM
    if not path.is_file():
        raise RunError(f"a program must be at {path}, but there is none; the release's record says why")
    try:
        return torch.export.load(path)
    except Exception as cause:  # as many ways
        raise RunError(f"{path} must be a torch.export program, but: {one_line(cause)}; restore the release") from None


def _compact(model: nn.Module) -> nn.Module:
    """A copy in `eval` mode on the CPU with plain tensors: those of a cut network are views, some channels-last."""
    own = copy.deepcopy(model).cpu().eval()
    for tensor in (*own.parameters(), *own.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return own


def _exported(model: nn.Module, example: Call) -> tuple[ExportedProgram, str | int]:
    """For any number of examples where the network allows it, else for as many as `example` holds."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about how it traces
        try:
            two = _doubled(example)  # torch.export takes one example for a constant
            count = len(two)

            def free(leaf: Any) -> Any:
                return {0: Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count else None

            shapes = tree_map(free, (two.args, dict(two.kwargs)))
            program = torch.export.export(
                model, two.args, dict(two.kwargs), dynamic_shapes=(*shapes[0], *shapes[1].values())
            )
            if not _is_free(program):
                raise ValueError("the batch is fixed")
            return program, "any"
        except Exception:  # it needs a fixed batch, or cannot be exported at all, which this tells
            return torch.export.export(model, example.args, dict(example.kwargs)), len(example)


def _doubled(example: Call) -> Call:
    args, kwargs = joined([(example.args, dict(example.kwargs))] * 2)
    return Call(args, kwargs)


def _is_free(program: ExportedProgram) -> bool:
    """Whether a first dimension of an input is still open."""
    inputs = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    return any(
        isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt) for value in inputs
    )
